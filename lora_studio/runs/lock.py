"""One process at a time trains in a run folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from lora_studio.errors import StudioError

LOCK = "lock.json"  # in the run folder, as long as a process trains there
_FAR = 2**30  # the byte of the file that Windows locks: what is locked cannot be read
_CHOICES = "choose another folder with --out"


@dataclass(frozen=True)
class Holder:
    """Who trains in a run folder."""

    pid: int
    host: str
    since: str  # ISO 8601, UTC
    process_started: float  # seconds since 1970: another process may get the same number later

    def __post_init__(self) -> None:
        """Raises TypeError for what a damaged file may hold."""
        if type(self.pid) is not int or not 0 < self.pid < 2**31 or type(self.process_started) is not float:
            raise TypeError(self)

    @classmethod
    def here(cls) -> Holder:
        import psutil

        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(os.getpid(), socket.gethostname(), now, psutil.Process().create_time())

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def runs(self) -> bool:
        """Of a holder on this machine."""
        import psutil

        try:
            return abs(psutil.Process(self.pid).create_time() - self.process_started) < 1
        except psutil.Error:
            return False


class RunLock:
    """`lock.json`, which says who holds it, locked by the system for as long as its process lives.

    What a process that was killed has left, or a machine that was switched off, is taken over. Disks without
    locks, as some network drives are, have the process's number to go by.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / LOCK
        self._descriptor: int | None = None
        self._made: list[Path] = []  # folders, the innermost first

    def acquire(self) -> Holder | None:
        """The holder that has left the lock behind, None if there was none.

        Raises StudioError while another one trains here, or may do so on another machine.
        """
        self._made = [one for one in (self.folder, *self.folder.parents) if not one.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor, locks = self._open()
        try:
            before = _read(descriptor)
            if before is not None:
                self._refuse(before, locks=locks)
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, json.dumps(asdict(Holder.here())).encode())
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return before

    @property
    def lost(self) -> bool:
        """Whether the lock is not at its place any more: the folder was deleted, moved or emptied."""
        return self._descriptor is not None and not _is_at(self.path, self._descriptor)

    def release(self) -> None:
        """Take the lock away, and folders that were made for it alone."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        with suppress(OSError):  # of a folder that was deleted meanwhile, or a disk that is gone
            os.ftruncate(descriptor, 0)
            if _is_at(self.path, descriptor):
                self.path.unlink()  # before the lock ends: whoever waits for it notices that the file is gone
        os.close(descriptor)
        if os.name == "nt":  # which removes no file that is open
            with suppress(OSError):
                self.path.unlink()
        with suppress(OSError):
            for folder in self._made:
                folder.rmdir()  # refused unless it is empty

    def _open(self) -> tuple[int, bool]:
        """The file, open and locked, and whether its disk has locks."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            given = system_lock(descriptor)
            if given is False:
                holder = _read(descriptor, seconds=1)
                os.close(descriptor)
                who = str(holder) if holder else "another process"
                raise StudioError(f"{self.folder} is in use by {who}; wait for it, stop it, or {_CHOICES}.")
            if _is_at(self.path, descriptor):
                return descriptor, given is not None
            os.close(descriptor)  # its holder has just removed it

    def _refuse(self, before: Holder, *, locks: bool) -> None:
        here = socket.gethostname()
        if before.host != here:
            raise StudioError(
                f"{self.folder} is in use by {before}, which cannot be seen from {here}; if that "
                f"has ended, delete {self.path} and start again, else wait for it, or {_CHOICES}."
            )
        if not locks and before.runs:
            raise StudioError(f"{self.folder} is in use by {before}; wait for it, stop it, or {_CHOICES}.")


def _read(descriptor: int, *, seconds: float = 0.0) -> Holder | None:
    """Who is in the file; None of an empty or damaged one, which may be filled within so many seconds."""
    end = time.monotonic() + seconds
    while True:
        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            return Holder(**json.loads(os.read(descriptor, 4096)))
        except (ValueError, TypeError, RecursionError):
            if time.monotonic() >= end:
                return None
        time.sleep(0.05)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False


def system_lock(descriptor: int) -> bool | None:
    """Whether the system gives the lock to this process; None if the file's disk has none."""
    try:
        import fcntl
    except ImportError:
        return _windows_lock(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _windows_lock(descriptor: int) -> bool:
    import msvcrt

    os.lseek(descriptor, _FAR, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError:
        return False
    return True
