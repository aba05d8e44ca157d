"""Files of other trainers as plain values: TOML, JSON, YAML, scripts with a command. Nothing runs."""

from __future__ import annotations

import codecs
import json
import os
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lora_studio.errors import RecipeError, reason_of
from lora_studio.recipe.toml import plain_values
from lora_studio.text import shown

_MOST_BYTES = 4_000_000
_MOST_VALUES, _DEEPEST = 50_000, 12  # of lists and tables, also where YAML's aliases repeat one
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_SCRIPT = re.compile(r"(?:^|[\\/\"'\s])((?:[a-z0-9]+_)*train(?:_[a-z0-9]+)*\.py)\b", re.IGNORECASE)
_ASSIGNED = (  # in sh, in a .bat file, in PowerShell
    re.compile(r"""^\s*(?:export\s+)?([A-Za-z_]\w*)=("[^"\n]*"|'[^'\n]*'|[^\s;&|#]*)\s*;?\s*$"""),
    re.compile(r"""^\s*@?set\s+"?([A-Za-z_]\w*)=([^"\n]*)"?\s*$""", re.IGNORECASE),
    re.compile(r"""^\s*\$(?:env:)?([A-Za-z_]\w*)\s*=\s*("[^"\n]*"|'[^'\n]*'|[\w.]+)\s*$"""),
)
_COMMENT = re.compile(r"^\s*(?:#|::|rem\b)", re.IGNORECASE)
_GOES_ON = re.compile(r"[ \t]*[\\^`][ \t]*$")
_VARIABLE = re.compile(r"\$\{(?:env:)?(\w+)\}|\$(?:env:)?([A-Za-z_]\w*)|%([A-Za-z_]\w*)%")
_JSON_COMMENT = re.compile(r"""("(?:[^"\\]|\\.)*")|//[^\n]*|/\*.*?\*/""", re.DOTALL)
_LAST_COMMA = re.compile(r"""("(?:[^"\\]|\\.)*")|,(\s*[}\]])""")
_BACKSLASH_PATH = re.compile(r"(?:^|[\s\"'=])(?:[A-Za-z]:|\.{1,2})?\\[\w$%.]")


@dataclass(frozen=True)
class TrainingCommand:
    """A training script with its arguments, and those of what launches it."""

    script: str  # the file's name alone
    arguments: dict[str, Any]  # by name, without --; a flag is True
    launcher: dict[str, Any] = field(default_factory=dict)
    unset: tuple[str, ...] = ()  # variables that are nowhere set


Content = TrainingCommand | dict[str, Any] | list[Any]


def read_settings(path: Path) -> Content:
    """What a file of another trainer holds, told from its content.

    Raises RecipeError with one sentence: a missing file, one that is no text, or none of the formats.
    """
    text = _text_of(path)
    start = text.lstrip()[:1]
    if start in ("{", "[", "/"):
        try:
            return _checked(_json(text, path), path)
        except RecursionError:
            raise _too_deep(path) from None
        except ValueError as error:
            if start == "{":
                raise RecipeError(f"{path} is not valid JSON: {reason_of(error)}.") from None
    try:
        if values := plain_values(text, str(path)):
            return _checked(values, path)
    except tomllib.TOMLDecodeError as error:
        fault = reason_of(error)
    else:
        raise RecipeError(f"{path} is empty; give the settings of another trainer.")
    if command := command_in(text, str(path)):
        return command
    try:
        found = _yaml(text)
    except _Twice as error:
        raise RecipeError(f"{path} has the key {shown(error.args[0])} twice; keep one of them.") from None
    except (yaml.YAMLError, RecursionError, ValueError):
        found = None
    if isinstance(found, dict | list):
        return _checked(found, path)
    if path.suffix.lower() == ".toml":
        raise RecipeError(f"{path} is not valid TOML: {fault}.")
    raise RecipeError(
        f"{path} is neither TOML, JSON, YAML nor a script with a training command; give the file with the "
        "other trainer's settings."
    )


class _Twice(Exception):
    """A key that a table has twice: the other trainers take the last one, and say nothing."""


def _yaml(text: str) -> Any:
    """Raises _Twice for a key that a table has twice, and YAMLError."""
    nodes, seen = [yaml.compose(text, yaml.SafeLoader)], set[int]()
    while nodes:
        node = nodes.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))  # what has several aliases is looked at once
        if isinstance(node, yaml.MappingNode):
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            _refuse_twice([name for name in names if name != "<<"])
            nodes += [value for _, value in node.value]
        else:
            nodes += node.value
    return yaml.safe_load(text)


def _refuse_twice(names: Sequence[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise _Twice(twice[0])


def _json(text: str, path: Path) -> Any:
    """JSON, also with comments and commas behind the last value. Raises RecipeError for a key twice."""

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _refuse_twice([name for name, _ in pairs])
        return dict(pairs)

    try:
        try:
            return json.loads(text, object_pairs_hook=table)
        except json.JSONDecodeError:
            plain = _JSON_COMMENT.sub(lambda found: found[1] or "", text)
            plain = _LAST_COMMA.sub(lambda found: found[1] or found[2], plain)
            return json.loads(plain, object_pairs_hook=table)
    except _Twice as error:
        raise RecipeError(f"{path} has the key {shown(error.args[0])} twice; keep one of them.") from None


def _text_of(path: Path) -> str:
    if not path.is_file():
        what = "is no file" if path.exists() else "is not there"
        raise RecipeError(f"{path} {what}; give --from the settings of another trainer.")
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{path} cannot be read ({error.strerror or error}).") from None
    if len(content) > _MOST_BYTES:
        raise RecipeError(f"{path} has more than {_MOST_BYTES:,} bytes, as no trainer's settings have.")
    try:
        return content.decode("utf-16" if content.startswith(_UTF16) else "utf-8-sig")
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is no text; give the settings of another trainer.") from None


def _checked(values: Any, path: Path) -> Any:
    """Refuses what would not end: YAML's aliases can make a few lines a tree of billions."""
    stack, count = [(values, 0)], 0
    while stack:
        value, depth = stack.pop()
        count += 1
        if count > _MOST_VALUES:
            raise RecipeError(f"{path} has more than {_MOST_VALUES:,} values, as no trainer's settings have.")
        if depth > _DEEPEST:
            raise _too_deep(path)
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                raise RecipeError(f"{path} has keys that are no text; give the settings of another trainer.")
            stack += [(one, depth + 1) for one in value.values()]
        elif isinstance(value, list):
            stack += [(one, depth + 1) for one in value]
    return values


def _too_deep(path: Path) -> RecipeError:
    return RecipeError(f"{path} has tables or lists within each other, more than {_DEEPEST} deep.")


def command_in(text: str, source: str) -> TrainingCommand | None:
    """The training command of a script, its variables filled in; None if it has none.

    Raises RecipeError for several, and for quotes that do not close.
    """
    variables: dict[str, str] = {}
    commands: list[str] = []
    for line in _joined(text):
        if found := next(filter(None, (one.match(line) for one in _ASSIGNED)), None):
            variables[found[1]] = _filled(found[2].strip("\"'"), variables, set())
        elif _SCRIPT.search(line) and "--" in line:
            commands.append(line)
    if not commands:
        return None
    if len(commands) > 1:
        raise RecipeError(f"{source} has {len(commands)} training commands; keep one of them in a file.")
    unset: set[str] = set()
    words = [_filled(word, variables, unset) for word in _words(commands[0], source)]
    place = next(number for number, word in enumerate(words) if _SCRIPT.search(f" {word}"))
    found_script = _SCRIPT.search(f" {words[place]}")
    script = found_script[1].lower() if found_script else ""
    return TrainingCommand(
        script, _arguments(words[place + 1 :]), _arguments(words[:place]), tuple(sorted(unset))
    )


def _joined(text: str) -> list[str]:
    """Lines, with those that go on in the next one put together, without comments."""
    lines, open_line = [], ""
    for line in text.splitlines():
        if _COMMENT.match(line):
            continue
        if _GOES_ON.search(line):
            open_line += _GOES_ON.sub(" ", line)
            continue
        lines.append(open_line + line)
        open_line = ""
    return [*lines, open_line] if open_line else lines


def _words(line: str, source: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.commenters = True, ""
    if _BACKSLASH_PATH.search(line):
        lexer.escape = ""
    try:
        return list(lexer)
    except ValueError as error:
        raise RecipeError(f"the command in {source} cannot be read ({reason_of(error)}).") from None


def _filled(word: str, variables: Mapping[str, str], unset: set[str]) -> str:
    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2] or found[3]
        if (said := variables.get(name, os.environ.get(name))) is None:
            unset.add(name)
            return found[0]
        return said

    return _VARIABLE.sub(value, word)


def _arguments(words: list[str]) -> dict[str, Any]:
    found: dict[str, list[str]] = {}
    name = ""
    for word in words:
        if re.match(r"--[A-Za-z]", word):
            name, equals, value = word[2:].partition("=")
            name = name.replace("-", "_")
            found[name] = [value] if equals else []
        elif name:
            found[name].append(word)
    return {key: True if not said else said[0] if len(said) == 1 else said for key, said in found.items()}


def words_of(value: object) -> list[str]:
    """Several values that may stand as a list or in one text: "a=1 b=2"."""
    if isinstance(value, list | tuple):
        return [str(one).strip() for one in value if str(one).strip()]
    try:
        return shlex.split(str(value)) if value not in (None, True, False) else []
    except ValueError:
        return str(value).split()


def pairs_of(value: object, name: str) -> dict[str, str]:
    """["conv_dim=8", "algo=lokr"] -> {"conv_dim": "8", "algo": "lokr"}. Raises RecipeError."""
    found = {}
    for word in words_of(value):
        key, equals, said = word.partition("=")
        if not equals or not key:
            raise RecipeError(f"{name} has {shown(repr(word), limit=80)}, which is not key=value.")
        found[key.strip()] = said.strip()
    return found
