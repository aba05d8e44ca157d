"""The table of tags in a file's metadata: how A1111 and Forge learn the trigger, as clickable words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping

from lora_studio.data.manifest import Record

TRIGGER, CAPTIONS = "trigger", "captions"
_MOST_LETTERS = 200  # of a tag: more is a sentence
KEY, LEFT_OUT = "ss_tag_frequency", "lora_studio.tags_left_out"


def trigger_table(records: Iterable[Record]) -> dict[str, int]:
    """Trigger words -> how many of these images they call, the most first."""
    return dict(Counter(one.trigger for one in records if one.trigger).most_common())


def caption_table(records: Iterable[Record]) -> dict[str, int]:
    """What stands between commas in captions -> in how many of them, the most first, then by name."""
    counts: Counter[str] = Counter()
    for record in records:
        captions = " , ".join(record.lines or (record.caption,))
        counts.update({tag for one in captions.replace("\n", ",").split(",") if (tag := one.strip())})
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def tag_keys(triggers: Mapping[str, int], captions: Mapping[str, int], room: int) -> dict[str, str]:
    """The keys of a table of at most `room` bytes in a header; the rarest tags are left out, and counted.

    Trigger words come first. Readers add up the tables, so they have the highest counts, too, if captions
    hold them.
    """
    tables: dict[str, dict[str, int]] = {TRIGGER: {}, CAPTIONS: {}}
    wanted = [(TRIGGER, *one) for one in triggers.items()] + [(CAPTIONS, *one) for one in captions.items()]
    used, left_out = _bytes({KEY: json.dumps(tables), LEFT_OUT: "9" * 9}), 0
    for table, tag, count in wanted:
        inner = json.dumps({tag: count}, ensure_ascii=False)[1:-1]
        entry = _bytes(f"{inner}, ") - 2
        if len(tag) > _MOST_LETTERS:
            left_out += 1
        elif (used := used + entry) <= room:
            tables[table][tag] = count
        else:
            left_out += 1
    tables = {name: table for name, table in tables.items() if table}
    keys = {KEY: json.dumps(tables, ensure_ascii=False)} if tables else {}
    return keys | ({LEFT_OUT: str(left_out)} if left_out else {})


def _bytes(values: Mapping[str, str] | str) -> int:
    """In a header, where a quote takes two."""
    return len(json.dumps(values, ensure_ascii=False).encode())


def left_out_in_words(checks: Mapping[str, int]) -> str:
    """What a user is told when a run ends; empty if all tags are in the file."""
    count = checks.get("tags_left_out", 0)
    return f"metadata has no room for all tags: {count} are left out, the rarest" if count else ""
