"""What the last collector of a recording committed, read back by its successor or by `fdtrace recover`.

The database and the directory may have come from somebody else: the database is opened with no way out of itself, and
what it says is checked before anything is done by it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.collector.store import PARTED
from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.leftovers import LOCK
from fdtrace.recorder.ring_directory import RING_NAME

CLOSED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "lock_configuration": "true",
    "memory_limit": "1GB",
    "threads": "1",
}
"""Settings of a connection to a database that may be anybody's."""

LONGEST_READ = 60.0
"""Seconds that reading a state may take: a view can be endless."""

_PART = re.compile(rf"(?:{'|'.join(table.name for table in PARTED)})-[0-9]{{8,12}}\.parquet")
_OTHERS = {"session.json", "session.tmp", LOCK, "collector.log", "next.duckdb"}
_OTHERS |= {f"{name}.duckdb{more}" for name in ("views", "final") for more in ("", ".wal")}


@dataclass
class SavedState:
    """`final`: the final file is in place, with so many `steps` and `calls`; else where to go on, as it was saved."""

    final: bool = False
    steps: int = 0
    calls: int = 0
    parts: dict[str, list[list[str]]] | None = None
    serial: int = 0
    notes: list[str] | None = None
    rings: dict[str, Any] = field(default_factory=dict)


def saved(path: Path, parts: Path, session_id: str) -> SavedState:
    """What was committed of the recording `session_id` at `path`; nothing where no collector came that far.

    TraceError where another file lies at `path`: it is never replaced.
    """
    state = None
    if os.path.lexists(path):
        state = _read(path)
        if state is None or state.get("session", session_id) != session_id:
            raise TraceError(
                f"{path} is not the trace of this recording",
                why=f"another file has been put there since it began; its own parts are in {parts}",
                hint=f"move that file away, then `fdtrace recover {path}`",
            )
    elif os.path.lexists(parts / "views.duckdb"):
        state = _read(parts / "views.duckdb")
    if state is None and any(parts.glob("*.parquet")):
        raise damaged(path, ValueError("neither it nor views.duckdb is there"))
    return _checked(state or {}, path)


def remove_published(path: Path, parts: Path, session_id: str) -> None:
    """Remove what a recording of which nothing is to stay has put at `path`; another file is left alone."""
    if os.path.lexists(path):
        with contextlib.suppress(TraceError):
            published = saved(path, parts, session_id)
            if not (published.steps or published.calls):
                path.unlink()


def check_parts(parts: Path) -> None:
    """TraceError unless everything in a directory of parts is a plain file of a name that a collector gives.

    The directory has to be this user's; it is closed to all others first.
    """
    try:
        fd = os.open(parts, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise TraceError(f"{parts} cannot be used", why=f"it is no directory ({error.strerror})") from None
    try:
        owner = os.fstat(fd).st_uid
        if owner != os.geteuid():
            raise TraceError(
                f"{parts} belongs to user {owner}",
                why="what lies in another user's directory can change while it is read",
                hint=f"run the same command as that user (`sudo -u '#{owner}' fdtrace …`), or make it yours (chown -R)",
            )
        os.fchmod(fd, 0o700)
        for name in sorted(os.listdir(fd)):
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode) or not (name in _OTHERS or _PART.fullmatch(name)):
                raise TraceError(
                    f"{parts} holds what no recording makes: {name!r}",
                    why="these parts were changed, or made by somebody else",
                    hint="nothing was changed; move it away if you know that the rest is a recording of yours",
                )
    finally:
        os.close(fd)


def _read(path: Path) -> dict[str, Any] | None:
    """The state in a published database, `{"final": …}` of a finished trace; None where it is neither."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return None
    try:
        db = duckdb.connect(str(path), read_only=True, config=CLOSED)
    except duckdb.Error:
        return None
    timer = threading.Timer(LONGEST_READ, db.interrupt)
    timer.start()
    try:
        named = "SELECT table_name FROM system.main.duckdb_tables() WHERE database_name = current_database()"
        tables = {name for (name,) in db.execute(named).fetchall()}
        if "_collector" in tables:
            found = db.execute("SELECT state FROM _collector").fetchall()
            state = json.loads(found[0][0]) if found else {}
            return state if isinstance(state, dict) else None
        if {table.name for table in schema.TABLES} <= tables:
            ((steps,),) = db.execute("SELECT count(*) FROM step").fetchall()
            ((calls,),) = db.execute("SELECT coalesce(sum(num_calls), 0)::BIGINT FROM call").fetchall()
            return {"final": True, "steps": steps, "calls": calls}
        return None
    except (duckdb.Error, ValueError, TypeError, RecursionError):
        return None
    finally:
        timer.cancel()
        db.close()


def _checked(state: dict[str, Any], path: Path) -> SavedState:
    try:
        if state.get("final"):
            return SavedState(final=True, steps=int(state["steps"]), calls=int(state["calls"]))
        parts = state.get("parts")
        if parts is not None:
            names = [name for levels in parts.values() for level in levels for name in level]
            if not set(parts) <= {table.name for table in PARTED} or not all(map(_PART.fullmatch, names)):
                raise ValueError("it names parts that no collector makes")
            parts = {table.name: parts.get(table.name, [[]]) for table in PARTED}
        notes = state.get("notes")
        if notes is not None and not all(isinstance(note, str) for note in notes):
            raise ValueError("its notes are no texts")
        rings = state.get("rings", {})
        if not all(map(RING_NAME.fullmatch, rings.get("tails", {}))):
            raise ValueError("it names rings that no agent makes")
        return SavedState(parts=parts, serial=int(state.get("serial", 0)), notes=notes, rings=rings)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> TraceError:
    """What a collector saved makes no sense."""
    return TraceError(
        f"the recording at {path} cannot be gone on with",
        why=f"what its collector saved is damaged, or from another version ({type(error).__name__}: {error})",
        hint=f"its parts are Parquet files, which any DuckDB reads: {path}.parts",
    )
