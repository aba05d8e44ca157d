"""Bytes of a text file -> text, however an editor saved it."""

from __future__ import annotations

import codecs


def decode_text(data: bytes) -> str:
    """The text, its lines ending in "\\n".

    Raises UnicodeDecodeError unless it is UTF-8, or UTF-16 with its mark.
    """
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # Windows Notepad's "Unicode"
    text = data.decode("utf-16" if utf16 else "utf-8-sig")
    if "\0" in text:  # UTF-16 without its mark passes for UTF-8 as far as the letters are ASCII
        raise UnicodeDecodeError("utf-8", data, 0, len(data), "holds NUL characters")
    return text.replace("\r\n", "\n").replace("\r", "\n")
