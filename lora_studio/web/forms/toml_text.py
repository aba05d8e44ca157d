"""A recipe's text with other values: comments, order and spelling of all that stays are kept."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import tomli_w

from lora_studio.recipe import Recipe
from lora_studio.web.forms.toml_values import key_text, value_text

Path = tuple[str | int, ...]  # keys, and numbers of tables in a list
_KEY = re.compile(r"""[ \t]*(?:([A-Za-z0-9_-]+)|"((?:[^"\\\n]|\\.)*)"|'([^'\n]*)')[ \t]*""")
_HEADER = re.compile(r"[ \t]*(\[\[?)")
_SET_IN = re.compile(r"[ \t]+#[^\n]*(?:\n|$)")
_STRINGS = ('"""', "'''", '"', "'")


@dataclass(frozen=True)
class _Statement:
    """Some lines of the text: a header, `key = value`, or what says nothing."""

    start: int
    end: int  # behind its line break
    path: Path = ()  # of a header the table's, of a value its own; empty: a comment or a blank line
    value: tuple[int, int] | None = None  # where the value stands
    is_list: bool = False  # a header in two brackets


def rewritten(text: str, values: Mapping[str, Any]) -> str:
    """The text with these values in place of its own, changed where they differ only.

    Where that cannot be done in place, the comments in front of everything are kept and the rest is written
    anew. Raises TOMLDecodeError if the text is not TOML.
    """
    old = tomllib.loads(text)
    if old == values:
        return text
    changed = text
    try:
        for path, value in _differences(old, values, ()):
            change = _without if value is None else _with
            changed = change(changed, path, value, values)
        if tomllib.loads(changed) == values:
            return changed
    except (tomllib.TOMLDecodeError, ValueError, LookupError):
        pass  # such as dotted keys in an order of their own
    head = next((one.start for one in _statements(text) if one.path), len(text))
    return text[:head] + tomli_w.dumps(values)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: Path) -> Iterator[tuple[Path, Any]]:
    """What is to be set, or taken away (None); tables in lists from the last to the first."""
    for key in dict.fromkeys([*old, *new]):
        before, after, path = old.get(key), new.get(key), (*prefix, key)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, path)
        elif before is None and isinstance(after, dict) and after:
            yield from _differences({}, after, path)
        elif _are_tables(before) and (after is None or after == [] or _are_tables(after)):
            yield from _in_list(before, after or [], path)
        elif before is None and _are_tables(after):
            yield from (((*path, number), one) for number, one in enumerate(after))
        else:
            yield path, after


def _in_list(before: list[Any], after: list[Any], path: Path) -> Iterator[tuple[Path, Any]]:
    """Whole tables that are gone or new, else what differs in them."""
    kept = [one for one in before if one in after]
    gone = [number for number, one in enumerate(before) if one not in after]
    if len(after) < len(before) and kept == after:
        yield from (((*path, number), None) for number in reversed(gone))
        return
    for number in range(len(after), len(before)):
        yield (*path, len(before) - 1 - (number - len(after))), None
    for number, one in enumerate(after):
        if number < len(before):
            yield from _differences(before[number], one, (*path, number))
        else:
            yield (*path, number), one


def _are_tables(value: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _statements(text: str) -> Iterator[_Statement]:
    """The text in pieces that put together are the text again."""
    at, counts = 0, dict[Path, int]()
    table: Path = ()
    while at < len(text):
        start, end = at, _line_end(text, at)
        if header := _HEADER.match(text, at):
            names = _numbered(_keys(text, header.end())[0], counts)
            is_list = header[1] == "[["
            if is_list:
                counts[names] = counts.get(names, -1) + 1
                names = (*names, counts[names])
            table = names
            yield _Statement(start, end, table, None, is_list)
        elif text[at:end].strip() and not text[at:end].lstrip().startswith("#"):
            keys, equals = _keys(text, at)
            first = equals + 1
            while text[first] in " \t":
                first += 1
            last = _value_end(text, first)
            end = _line_end(text, last)
            while comment := _SET_IN.match(text, end):  # goes on with the one behind the value
                end = comment.end()
            yield _Statement(start, end, (*table, *keys), (first, last))
        else:
            yield _Statement(start, end)
        at = end


def _line_end(text: str, at: int) -> int:
    found = text.find("\n", at)
    return len(text) if found < 0 else found + 1


def _keys(text: str, at: int) -> tuple[Path, int]:
    """A key with dots, and where what follows it stands. Raises ValueError if there is none."""
    keys: list[str | int] = []
    while found := _KEY.match(text, at):
        bare, basic, literal = found.groups()
        keys.append(bare or literal or (tomllib.loads(f'v = "{basic or ""}"')["v"]))
        at = found.end()
        if text[at : at + 1] != ".":
            return tuple(keys), at
        at += 1
    raise ValueError("no key")


def _numbered(names: Path, counts: Mapping[Path, int]) -> Path:
    """With the number of the table in each list that is begun already: [tokens.x] is in its last one."""
    found: Path = ()
    for place, name in enumerate(names):
        found = (*found, name)
        if found in counts and place + 1 < len(names):
            found = (*found, counts[found])
    return found


def _value_end(text: str, at: int) -> int:
    """Behind the value that begins there: brackets are closed and strings are ended."""
    depth, start = 0, at
    while at < len(text):
        mark = next((one for one in _STRINGS if text.startswith(one, at)), "")
        if mark:
            at = _string_end(text, at, mark)
        elif text[at] == "#":
            if not depth:
                break
            at = _line_end(text, at)
            continue
        elif text[at] in "[{":
            depth, at = depth + 1, at + 1
        elif text[at] in "]}":
            depth, at = depth - 1, at + 1
        elif text[at] == "\n" and not depth:
            break
        else:
            at += 1
    return start + len(text[start:at].rstrip())


def _string_end(text: str, at: int, mark: str) -> int:
    at += len(mark)
    while at < len(text):
        if text[at] == "\\" and mark[0] == '"':
            at += 2
        elif text.startswith(mark, at):
            at += len(mark)
            while len(mark) == 3 and text[at : at + 1] == mark[0]:  # up to two quotes may end the text
                at += 1
            return at
        else:
            at += 1
    return at


def _with(text: str, path: Path, value: Any, values: Mapping[str, Any]) -> str:
    """The text with the value there: in its place, inside of an inline value, or on a new line."""
    statements = list(_statements(text))
    for one in statements:
        if one.value and path[: len(one.path)] == one.path:
            whole = value if path == one.path else _at(values, one.path)
            start, end = one.value
            return text[:start] + value_text(whole, one_line=False) + text[end:]
    if isinstance(path[-1], int):
        return _added_table(text, statements, path, value)
    table, key = path[:-1], str(path[-1])
    line = f"{key_text(key)} = {value_text(value, one_line=False)}\n"
    place = _end_of_table(statements, table)
    if place is None:
        return _inserted(text, _place_of(statements, table), f"[{_name_of(table)}]\n{line}")
    before = text[:place]
    return (before if before.endswith("\n") or not before else before + "\n") + line + text[place:]


def _place_of(statements: Sequence[_Statement], table: Path) -> int | None:
    """Where a new table goes: in front of the first one that comes later in a recipe; None: at the end."""
    order = list(Recipe.model_fields)
    rank = order.index(str(table[0])) if table[0] in order else len(order)
    place = None
    for one in statements:  # with the comments right above it
        later = one.path and one.value is None and one.path[0] in order
        if later and order.index(str(one.path[0])) > rank:
            return place if place is not None else one.start
        if one.path:
            place = None
        elif place is None:
            place = one.start
    return None


def _at(values: Any, path: Path) -> Any:
    for part in path:
        values = values[part]
    return values


def _name_of(table: Path) -> str:
    return ".".join(key_text(part) for part in table if isinstance(part, str))


def _end_of_table(statements: Sequence[_Statement], table: Path) -> int | None:
    """Behind the last value of the table, or its header; None if it has none."""
    found = None if table else 0
    for one in statements:
        if (one.path == table and table and one.value is None) or (one.value and one.path[:-1] == table):
            found = one.end
        elif one.path and one.value is None and not table:
            break
    return found


def _added_table(text: str, statements: Sequence[_Statement], path: Path, value: Mapping[str, Any]) -> str:
    """A further table of a list, behind its others."""
    name, number = _name_of(path), int(path[-1])
    lines = "".join(f"{key_text(key)} = {value_text(one, one_line=False)}\n" for key, one in value.items())
    earlier = (*path[:-1], number - 1)
    place = _block(statements, earlier)[1] if number else _place_of(statements, path[:-1])
    return _inserted(text, place, f"[[{name}]]\n{lines}")


def _inserted(text: str, place: int | None, lines: str) -> str:
    """With lines of a table of their own there, or at the end, a blank one before and behind them."""
    before, behind = (text, "") if place is None else (text[:place], text[place:])
    before = before.rstrip("\n") + "\n\n" if before.strip() else ""
    behind = behind.lstrip("\n")
    return before + lines + ("\n" + behind if behind else "")


def _block(statements: Sequence[_Statement], table: Path) -> tuple[int, int]:
    """From the table's header to the end of what is in it and below it. Raises ValueError if it has none."""
    start = end = None
    for one in statements:
        if not one.path:
            continue
        if one.path[: len(table)] == table:
            start, end = (one.start if start is None else start), one.end
        elif start is not None:
            break
    if start is None or end is None:
        raise ValueError("no such table")
    return start, end


def _without(text: str, path: Path, _: None, values: Mapping[str, Any]) -> str:
    """The text without a value and the comment behind it, or without a table of a list."""
    statements = list(_statements(text))
    if own := next((one for one in statements if one.value and one.path == path), None):
        rest = text[: own.start] + text[own.end :]
        return _without_empty(rest, path[:-1])
    for one in statements:
        if one.value and path[: len(one.path)] == one.path:  # inside of an inline value
            return _with(text, one.path, _at(values, one.path), values)
    start, end = _block(statements, path)
    if not isinstance(path[-1], int):
        while any(one.path[: len(path)] == path for one in _statements(text)):
            start, end = _block(list(_statements(text)), path)
            text = _joined(text[:start], text[end:])
        return text
    return _joined(text[:start], text[end:])


def _without_empty(text: str, table: Path) -> str:
    """Without the header of a table in which nothing is left, be it a comment."""
    statements = list(_statements(text))
    for place, one in enumerate(statements):
        if one.value is None and one.path == table and table and not isinstance(table[-1], int):
            following = statements[place + 1 :]
            said = next((it for it in following if it.path or text[it.start : it.end].strip()), None)
            if said is None or (said.path and said.value is None and said.path[: len(table)] != table):
                return _joined(text[: one.start], text[one.end :])
    return text


def _joined(before: str, behind: str) -> str:
    before, behind = before.rstrip("\n"), behind.lstrip("\n")
    if not before or not behind:
        return before + "\n" if before else behind
    return f"{before}\n\n{behind}"
