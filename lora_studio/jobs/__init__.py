"""The queue: jobs that outlive terminals, workers and power cuts, in one SQLite file of the user's.

A job is a command of lora-studio, done by a process of its own (`worker.py`). Of the queues that are kept as
libraries (huey, persist-queue, litequeue) none can stop a task and go on with it later, tie a task to a GPU,
or tell a task whose worker was killed from one at work; so that much is here, on Python's own sqlite3.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from lora_studio.errors import StudioError
from lora_studio.files import expanded
from lora_studio.runs.lock import system_lock
from lora_studio.text import plain_line, shown

State = Literal["queued", "running", "stopping", "stopped", "failed", "done", "lost"]
STATES: tuple[State, ...] = get_args(State)
AT_WORK: tuple[State, ...] = ("running", "stopping")
MAY_RESUME: tuple[State, ...] = ("stopped", "failed", "lost")
VERSION = 1  # of the file's tables
BUSY_SECONDS = 60.0  # how long one process waits while another writes
_TABLES = """
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, arguments TEXT NOT NULL, folder TEXT NOT NULL, run TEXT NOT NULL,
    recipe TEXT NOT NULL, recipe_sha256 TEXT NOT NULL, after INTEGER, priority INTEGER NOT NULL,
    state TEXT NOT NULL, worker TEXT NOT NULL, device TEXT NOT NULL, pid INTEGER NOT NULL,
    heartbeat REAL NOT NULL, tries INTEGER NOT NULL, reason TEXT NOT NULL);
CREATE TABLE history (at REAL NOT NULL, job INTEGER NOT NULL, state TEXT NOT NULL, worker TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Job:
    """A command in the queue. `id` 0: not in it yet."""

    arguments: tuple[str, ...]  # of lora-studio
    folder: str  # that it is given in
    run: str = ""  # the run folder of a training
    recipe: str = ""  # its file, and what that held when the job was added
    recipe_sha256: str = ""
    after: int | None = None  # the job that has to be done first
    priority: int = 0  # higher ones come first
    id: int = 0
    state: State = "queued"
    worker: str = ""
    device: str = ""
    pid: int = 0  # of its process
    heartbeat: float = 0.0  # when its worker was last seen, in seconds since 1970
    tries: int = 0
    reason: str = ""  # how it ended, in a sentence

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


_READY = (
    "SELECT * FROM jobs WHERE state = 'queued' AND (after IS NULL OR after IN "
    "(SELECT id FROM jobs WHERE state = 'done')) ORDER BY priority DESC, id"
)
_WORKER = "worker-"  # begins the name of the lock that a worker holds as long as it lives
_COLUMNS = tuple(one.name for one in fields(Job))


def data_folder() -> Path:
    """Where the queue lies: $LORA_STUDIO_HOME or ~/.local/share/lora-studio.

    Raises StudioError if there is no such home folder.
    """
    said = os.environ.get("LORA_STUDIO_HOME") or "~/.local/share/lora-studio"
    if (folder := expanded(said)) == Path(said) and said.startswith("~"):
        raise StudioError(f"the folder {said} is in no home folder; set LORA_STUDIO_HOME to a folder.")
    return folder


class Queue:
    """The jobs of a folder, for any number of processes at a time; each call is one transaction, on the disk.

    Every one raises StudioError for a queue that cannot be read or written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or data_folder()
        self.path = self.folder / "queue.sqlite3"

    def log(self, job: int) -> Path:
        """The file with what a job has printed."""
        return self.folder / "jobs" / f"{job}.log"

    def add(self, job: Job) -> Job:
        """Put it at the end of those with its priority. Raises StudioError if it cannot wait for `after`."""
        with self._writing() as database:
            if job.after is not None:
                _one(database, job.after)
            if job.run and (other := _of_run(database, job.run)):
                raise StudioError(
                    f"job {other.id} ({other.state}) has the run folder {shown(job.run)} already; "
                    "choose another with --out, or remove that job."
                )
            values = asdict(job) | {"arguments": json.dumps(job.arguments), "state": "queued"}
            del values["id"]
            names, places = ", ".join(values), ", ".join(f":{name}" for name in values)
            found = database.execute(f"INSERT INTO jobs ({names}) VALUES ({places})", values)
            return _changed(database, int(found.lastrowid or 0))

    def jobs(self) -> list[Job]:
        """All of them, by number; those whose processes have ended without a word are `lost`."""
        if not self.path.is_file():
            return []
        with self._writing() as database:
            return [_job(row) for row in database.execute("SELECT * FROM jobs ORDER BY id")]

    def job(self, number: int) -> Job:
        """Raises StudioError if there is none of this number."""
        with self._writing() as database:
            return _one(database, number)

    def take(self, worker: str, device: str) -> tuple[Job, int] | None:
        """The next job, from now on this worker's alone, and the lock that says so; None if none can start.

        The lock is a file descriptor: whoever has it open, worker or job, is known to be alive.
        """
        lock = None
        try:
            with self._writing() as database:
                for row in database.execute(_READY).fetchall():
                    if (lock := self.lock(row["id"])) is not None:
                        given = {"worker": worker, "device": device, "tries": row["tries"] + 1}
                        return _changed(database, row["id"], state="running", reason="", **given), lock
                return None  # there is none, or a process of an earlier try is still at work
        except BaseException:
            if lock is not None:
                os.close(lock)  # else no worker could take it, as this one would seem to have it
            raise

    def is_ready(self) -> bool:
        """Whether a job could be taken."""
        with self._writing() as database:
            return database.execute(_READY).fetchone() is not None

    def beat(self, job: int, pid: int) -> State:
        """Say that the worker is there, and hear whether the job should stop."""
        with self._writing() as database:
            given = {"heartbeat": time.time(), "pid": pid}
            database.execute(
                "UPDATE jobs SET heartbeat = :heartbeat, pid = :pid WHERE id = :id", given | {"id": job}
            )
            return _one(database, job).state

    def ended(self, job: int, state: State, reason: str) -> Job:
        """Its process has ended."""
        with self._writing() as database:
            return _changed(database, job, state=state, reason=reason, pid=0)

    def stop(self, number: int) -> Job:
        """A queued one will not start; one at work writes a checkpoint and ends."""
        with self._writing() as database:
            job = _one(database, number)
            if job.state not in ("queued", *AT_WORK):
                raise StudioError(
                    f"job {number} is {job.state}; only one that is queued or running can be stopped."
                )
            if job.state == "queued":
                return _changed(database, number, state="stopped", reason="stopped before it began")
            return job if job.state == "stopping" else _changed(database, number, state="stopping")

    def resume(self, number: int, *, recipe_sha256: str = "") -> Job:
        """Queue it again, to go on where it was; with its recipe as it now is, if that is given."""
        with self._writing() as database:
            job = _one(database, number)
            if job.state not in MAY_RESUME:
                which = f"only {', '.join(MAY_RESUME)} ones can be resumed"
                raise StudioError(f"job {number} is {job.state}; {which}.")
            return _changed(
                database, number, state="queued", recipe_sha256=recipe_sha256 or job.recipe_sha256
            )

    def remove(self, number: int) -> Job:
        """Take it off the list, with its log; its run folder stays."""
        with self._writing() as database:
            job = _one(database, number)
            if job.state in AT_WORK:
                raise StudioError(
                    f"job {number} is {job.state}; stop it first: lora-studio queue stop {number}"
                )
            waiting = "SELECT id FROM jobs WHERE after = ? AND state != 'done'"
            if behind := database.execute(waiting, (number,)).fetchone():
                raise StudioError(f"job {behind['id']} waits for job {number}; remove that one first.")
            _note(database, number, "removed", "")
            database.execute("DELETE FROM jobs WHERE id = ?", (number,))
        self.log(number).unlink(missing_ok=True)
        self._lock_file(number).unlink(missing_ok=True)
        return job

    def history(self) -> list[tuple[float, int, str, str]]:
        """Every change of state: when, of which job, to what, by which worker."""
        with self._writing() as database:
            return [tuple(row) for row in database.execute("SELECT * FROM history ORDER BY rowid")]

    def lock(self, what: int | str) -> int | None:
        """The lock of a job or a device, taken: a file descriptor; None while another process has it.

        Raises StudioError, also on a disk without locks.
        """
        try:
            (self.folder / "jobs").mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._lock_file(what), os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._unusable(error) from None
        given = system_lock(descriptor)
        if not given:
            os.close(descriptor)
        if given is None:
            raise StudioError(
                f"the disk of {self.folder} has no locks, without which two workers could do one job; "
                "set LORA_STUDIO_HOME to a folder on a disk of this machine."
            )
        return descriptor if given else None

    @contextmanager
    def in_sight(self, worker: str) -> Iterator[None]:
        """Within it `has_worker` is true, however this process ends; a full disk does not stop it."""
        sign, held = f"{_WORKER}{re.sub(r'[^A-Za-z0-9_.-]', '_', worker)}", None
        with suppress(StudioError):
            held = self.lock(sign)
        try:
            yield
        finally:
            self._take_away(sign, held)

    def has_worker(self) -> bool:
        """Whether a worker is there, at work or idle; the signs of those that were killed are taken away."""
        for sign in [path.stem for path in (self.folder / "jobs").glob(f"{_WORKER}*.lock")]:
            if (held := self.lock(sign)) is None:
                return True
            self._take_away(sign, held)
        return False

    def _take_away(self, sign: str, held: int | None) -> None:
        if held is not None:
            os.close(held)  # Windows removes no file that is open
            with suppress(OSError):
                self._lock_file(sign).unlink()

    def _lock_file(self, what: int | str) -> Path:
        return self.folder / "jobs" / f"{what}.lock"

    def _find_lost(self, database: sqlite3.Connection) -> None:
        for row in database.execute("SELECT id FROM jobs WHERE state IN ('running', 'stopping')").fetchall():
            if (lock := self.lock(row["id"])) is not None:
                why = "its worker and its process ended without a word; `queue resume` goes on with it"
                _changed(database, row["id"], state="lost", reason=why, pid=0)
                os.close(lock)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that no other process is in; all of it is on the disk at its end, or nothing."""
        try:
            (self.folder / "jobs").mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)) as database:
                database.row_factory = sqlite3.Row
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = FULL")
                database.execute("BEGIN IMMEDIATE")
                try:
                    self._have_tables(database)
                    self._find_lost(database)
                    yield database
                except BaseException:
                    if database.in_transaction:  # which a full disk has ended already
                        database.execute("ROLLBACK")
                    raise
                database.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from None
        except OverflowError:
            raise StudioError("numbers of jobs and priorities have at most 18 digits.") from None
        except UnicodeError as error:
            raise StudioError(f"a name of a folder is no UTF-8 text ({error}); rename it.") from None

    def _unusable(self, error: Exception) -> StudioError:
        return StudioError(
            f"the queue {self.path} cannot be used ({error}); if its disk is full, make room; if it may not "
            "be written, set LORA_STUDIO_HOME to a folder of yours; if it is damaged, move it away: runs and "
            "recipes are not in it."
        )

    def _have_tables(self, database: sqlite3.Connection) -> None:
        (there,) = database.execute("PRAGMA user_version").fetchone()
        if there == 0:
            for table in filter(str.strip, _TABLES.split(";")):
                database.execute(table)
            database.execute(f"PRAGMA user_version = {VERSION}")
        elif there != VERSION:
            raise StudioError(f"the queue {self.path} is of a newer LoRA Studio; update this one.")


def _job(row: sqlite3.Row) -> Job:
    values = {name: row[name] for name in _COLUMNS}
    return Job(**(values | {"arguments": tuple(json.loads(row["arguments"]))}))


def _one(database: sqlite3.Connection, number: int) -> Job:
    if row := database.execute("SELECT * FROM jobs WHERE id = ?", (number,)).fetchone():
        return _job(row)
    raise StudioError(f"there is no job {number}; `lora-studio queue list` shows those that are there.")


def _of_run(database: sqlite3.Connection, run: str) -> Job | None:
    row = database.execute("SELECT * FROM jobs WHERE run = ? AND state != 'done'", (run,)).fetchone()
    return _job(row) if row else None


def _changed(database: sqlite3.Connection, number: int, **values: object) -> Job:
    """The job with its new values; every change of state is in the history."""
    if values:
        given = ", ".join(f"{name} = :{name}" for name in values)
        database.execute(f"UPDATE jobs SET {given} WHERE id = :id", values | {"id": number})
    job = _one(database, number)
    _note(database, number, job.state, job.worker)
    return job


def _note(database: sqlite3.Connection, number: int, state: str, worker: str) -> None:
    database.execute("INSERT INTO history VALUES (?, ?, ?, ?)", (time.time(), number, state, worker))


def last_lines(log: Path, most_bytes: int) -> list[str]:
    """The lines at the end of a job's log, without blank ones and what steers a terminal; none without it."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - most_bytes))
            lines = [plain_line(line) for line in file.read().decode("utf-8", "replace").splitlines()]
    except OSError:
        return []
    return [line for line in lines if line]
