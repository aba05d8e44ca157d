"""What a file is that bears the name of a file of tensors and is none, told from how it begins."""

from __future__ import annotations

import re

START_BYTES = 512
_MOST_OF_A_HEADER = 2**40  # bytes; text makes larger numbers
_ZIP, _PICKLE = (b"PK\x03\x04", b"PK\x05\x06"), re.compile(rb"\x80[\x01-\x05]")
_POINTER = re.compile(rb"version https?://[\w./-]*(?:git-lfs|hawser)(?:.*\nsize (\d{1,15})\s)?", re.S)
_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype|!--|html|head|body|\?xml|[a-z]+[\s>])", re.I)
_ANSWER = re.compile(rb"(?:\xef\xbb\xbf)?\s*[{\[]\s*[\"{\]}]")
_AGAIN, _UNPACK = "download it again", "unpack it and give the file in it"
_OTHER_MODEL = "get the .safetensors version of the model"
_BEGINNINGS = (  # bytes, what so begins, what to do
    (b"GGUF", "a GGUF file, which llama.cpp and stable-diffusion.cpp read", _OTHER_MODEL),
    ((b"ggml", b"lmgg", b"tjgg"), "a GGML file, which older programs of llama.cpp read", _OTHER_MODEL),
    (b"\x89HDF", "an HDF5 file, as Keras writes them", _OTHER_MODEL),
    (b"\x93NUMPY", "a NumPy file", _OTHER_MODEL),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x1f\x8b", "packed with gzip", _UNPACK),
    (b"BZh", "packed with bzip2", _UNPACK),
    (b"\xfd7zXZ", "packed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", _UNPACK),
    ((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF"), "an image", _AGAIN),
    (b"%PDF", "a PDF", _AGAIN),
    ((b"MZ", b"\x7fELF"), "a program", _AGAIN),
)


def what_instead(start: bytes) -> str:
    """What a file is that begins with these `START_BYTES`, and what to do; "" if that may be a header.

    A header's length may look like any of the others, so a brace behind it decides.
    """
    if not start:
        return f"empty; {_AGAIN}"
    if _may_be_header(start):
        return ""
    if is_torch_file(start):
        return f"a pickle of torch (.ckpt, .pt or .bin), which can hold code; {_OTHER_MODEL}"
    if start.startswith(_ZIP):
        return f"a zip archive; {_UNPACK}"
    if start[257:262] == b"ustar":
        return f"a tar archive; {_UNPACK}"
    if pointer := _POINTER.match(start):
        size = f", which has {int(pointer[1]):,} bytes" if pointer[1] else ""
        return f"the pointer of one in Git LFS{size}; fetch that with `git lfs pull`, or download it"
    for beginning, what, advice in _BEGINNINGS:
        if start.startswith(beginning):
            return f"{what}; {advice}"
    return _in_words(start)


def is_torch_file(start: bytes) -> bool:
    """Whether torch's own reader may make something of it: pickles, and zips with one in them."""
    has_pickle = (start.startswith(_ZIP) and b"data.pkl" in start) or bool(_PICKLE.match(start))
    return has_pickle and not _may_be_header(start)


def _may_be_header(start: bytes) -> bool:
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < _MOST_OF_A_HEADER


def _in_words(start: bytes) -> str:
    """Of text, and of what is no file at all."""
    if _PAGE.match(start):
        return "a web page, as when a download needs a login; log in there and download it again"
    if not any(start):
        return f"zeros, as a download leaves them that was stopped; {_AGAIN}"
    if _ANSWER.match(start):
        return f"text in JSON, as servers answer when a download fails; {_AGAIN}"
    try:
        text = start.decode("utf-8", "strict" if len(start) < START_BYTES else "ignore")
    except UnicodeDecodeError:
        return ""
    return f"a text; {_AGAIN}" if re.sub(r"\s", "", text).isprintable() else ""
