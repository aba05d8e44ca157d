"""Files written whole or not at all, and what identifies them."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedWriter
from pathlib import Path

from lora_studio.errors import StudioError

_TEMPORARY = ".lora-studio-*.tmp"


def cache_folder() -> Path:
    """Where everything is cached, shared between runs: $LORA_STUDIO_CACHE or ~/.cache/lora-studio.

    Raises StudioError if there is no such home folder, as in containers that run as a user without a name.
    """
    said = os.environ.get("LORA_STUDIO_CACHE") or "~/.cache/lora-studio"  # set to nothing it is not set
    if (folder := expanded(said)) == Path(said) and said.startswith("~"):
        raise StudioError(f"the cache folder {said} is in no home folder; set LORA_STUDIO_CACHE to a folder.")
    return folder


def expanded(path: str | Path) -> Path:
    """With ~ and ~user replaced; where no user of that name has a home folder it stays as it is."""
    return Path(os.path.expanduser(path))  # Path.expanduser raises instead


def write_atomically(path: Path, content: bytes | Iterable[bytes]) -> None:
    """`path` holds either its old content or all of the new, which may come in pieces, whatever happens."""
    with writing_atomically(path) as file:
        file.writelines([content] if isinstance(content, bytes) else content)


@contextmanager
def writing_atomically(path: Path) -> Iterator[BufferedWriter]:
    """A file to be written piece by piece; it is at `path` when all of it is on the disk, not before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not built from the name, which may already be as long as the file system allows.
    temporary = path.with_name(_TEMPORARY.replace("*", uuid.uuid4().hex))
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


_FILES = frozenset(  # how the names of files end, not of folders
    (
        *(".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".onnx", ".zip"),
        *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".html", ".md", ".txt", ".log"),
        *(".json", ".jsonl", ".toml", ".yaml", ".yml", ".csv"),
    )
)


def check_ending(path: Path, ending: str, option: str = "-o") -> None:
    """Raise StudioError if what is written there is no file as its name says; `ending` "": it is a folder."""
    said = path.suffix.lower()
    bare = path.with_suffix("") if said in _FILES else path
    if ending and said != ending:
        raise StudioError(
            f"{option} is {path}, but a {ending} file is written; give {option} {bare}{ending}."
        )
    if not ending and said in _FILES:
        what = "named like a file, but a folder is written"
        raise StudioError(f"{option} is {path}, {what}; give {option} {bare}.")


@contextmanager
def say_unwritable(path: Path) -> Iterator[None]:
    """Raises StudioError where the system has not let a file be written."""
    try:
        yield
    except OSError as error:
        raise StudioError(f"{path} cannot be written ({error.strerror or error}).") from None


def set_aside(path: Path, ending: str) -> Path:
    """Give it another name beside it, which nothing has yet. Raises OSError where the system does not."""
    names = (f"{path.name}{ending}{number or ''}" for number in range(1000))
    return path.rename(next(one for name in names if not os.path.lexists(one := path.with_name(name))))


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or which names a folder has (Windows opens none)."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(path: Path) -> str:
    """sha256 of a file, or over the names and sha256 of all files in a folder."""
    if path.is_file():
        return digest(path)
    whole = hashlib.sha256()
    for one in sorted(path.rglob("*")):
        if one.is_file():
            whole.update(f"{one.relative_to(path).as_posix()} {digest(one)}\n".encode())
    return whole.hexdigest()


def size_of(path: Path) -> int:
    return sum(one.stat().st_size for one in (path, *path.rglob("*")) if one.is_file())


def digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
