"""Reads the state that the last collector of a recording committed, for its successor or for `fdtrace recover`.

The database and the directory may come from somebody else. So the database is opened without access to anything else,
and its state is checked before it is used.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb

from fdtrace.recorder import schema
from fdtrace.recorder.collector.live_parts import LIVE
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
"""Most seconds that reading a state may take: a view can be endless."""

_PART_NAME = re.compile(rf"(?:{'|'.join([*(table.name for table in PARTED), *LIVE])})-[0-9]{{8,12}}\.parquet")
_OTHER_NAMES = {"session.json", "session.tmp", LOCK, "collector.log", "next.duckdb"}
_OTHER_NAMES |= {f"{name}.duckdb{more}" for name in ("views", "final") for more in ("", ".wal")}


@dataclass
class SavedState:
    """`final`: the final file is in place and has so many `steps` and `calls`. Else: the saved state to go on from."""

    final: bool = False
    steps: int = 0
    calls: int = 0
    parts: dict[str, list[list[str]]] | None = None
    live: dict[str, str] = field(default_factory=dict)
    """The part of each table that holds rows which are not final. `parts` do not name it."""
    serial: int = 0
    notes: list[str] | None = None
    rings: dict[str, Any] = field(default_factory=dict)
    flight: dict[str, Any] = field(default_factory=dict)
    """What a flight recorder needs to go on."""


def read_saved_state(path: Path, parts: Path, session_id: str) -> SavedState:
    """What was committed of the recording `session_id` at `path`; an empty state if no collector got that far.

    Raises:
        TraceError: another file is at `path`. It is never replaced.
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
    """Remove the file that a recording without any step or call has put at `path`. Another file is left alone."""
    if os.path.lexists(path):
        with contextlib.suppress(TraceError):
            published = read_saved_state(path, parts, session_id)
            if not (published.steps or published.calls):
                path.unlink()


def check_parts(parts: Path, also: Collection[str] = ()) -> None:
    """Raise a TraceError unless every entry of a parts directory is a plain file with a name that a collector gives.

    The directory must be this user's. First it is closed to all other users. `also`: further names.
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
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode) or not (
                name in _OTHER_NAMES or name in also or _PART_NAME.fullmatch(name)
            ):
                raise TraceError(
                    f"{parts} holds a file that no recording makes: {name!r}",
                    why="these parts were changed, or made by somebody else",
                    hint="nothing was changed; move that file away if you know that the rest is a recording of yours",
                )
    finally:
        os.close(fd)


def _read(path: Path) -> dict[str, Any] | None:
    """The state in a published database; `{"final": …}` for a finished trace; None if it is neither."""
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
            rows = db.execute("SELECT state FROM _collector").fetchall()
            state = json.loads(rows[0][0]) if rows else {}
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
        parts, live = state.get("parts"), dict[str, str]()
        if parts is not None:
            names = [name for levels in parts.values() for level in levels for name in level]
            if not set(parts) <= {table.name for table in PARTED} or not all(
                map(_PART_NAME.fullmatch, names)
            ):
                raise ValueError("it names parts that no collector makes")
            live = _live_parts(state)
            parts = {
                table.name: [
                    [name for name in level if name != live.get(table.name)]
                    for level in parts.get(table.name, [[]])
                ]
                for table in PARTED
            }
        notes = state.get("notes")
        if notes is not None and not all(isinstance(note, str) for note in notes):
            raise ValueError("its notes are no texts")
        rings = state.get("rings", {})
        if not all(map(RING_NAME.fullmatch, rings.get("tails", {}))):
            raise ValueError("it names rings that no agent makes")
        flight = state.get("flight", {})
        if not isinstance(flight, dict):
            raise ValueError("its flight is no object")
        serial = int(state.get("serial", 0))
        return SavedState(parts=parts, live=live, serial=serial, notes=notes, rings=rings, flight=flight)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged(path, error) from None


def _live_parts(state: dict[str, Any]) -> dict[str, str]:
    """The parts with rows that are not final. An earlier version had such rows in tables of the database."""
    live = state.get("live", {})
    tables = {table.name: f"{name}-" for name, table in LIVE.items()}
    if not all(
        table in tables and name.startswith(tables[table]) and _PART_NAME.fullmatch(name)
        for table, name in live.items()
    ):
        raise ValueError("it names parts that no collector makes")
    return dict(live)


def damaged(path: Path, error: Exception) -> TraceError:
    """The error for a saved state that makes no sense."""
    return TraceError(
        f"the recording at {path} cannot be continued",
        why=f"the state that its collector saved is damaged, or from another version ({type(error).__name__}: {error})",
        hint=f"its parts are Parquet files, which any DuckDB reads: {path}.parts",
    )
