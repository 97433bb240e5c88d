"""The collector: tails every ring of one session until it ends, then leaves one self-contained trace."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from fdtrace.recorder.trace.column_values import MISSING, ColumnArrays

from fdtrace.recorder import __version__, schema
from fdtrace.recorder.collector import failures, finish
from fdtrace.recorder.collector.call_rows import CallRows
from fdtrace.recorder.collector.engine import Decoded, Engine
from fdtrace.recorder.collector.nvml import Nvml
from fdtrace.recorder.collector.rings import Rings
from fdtrace.recorder.collector.saved import damaged, saved
from fdtrace.recorder.collector.store import Store
from fdtrace.recorder.collector.tables import TEXT, columns_of
from fdtrace.recorder.collector.tail import FLUSH_STEPS, RingTail
from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.leftovers import LOCK
from fdtrace.recorder.session import Session

WIDE = ("BIGINT", "UBIGINT", "HUGEINT", "TIMESTAMP_NS")
"""Types that hold 63 bits."""

PUBLISH = 1.5
"""Seconds between two published states: with the time that one takes, what a reader sees is less than 2 s old."""


class Collector:
    """Reads, decodes and publishes one session. One at a time: it holds a lock in the parts directory."""

    def __init__(self, session: Session, *, state: str = "recording") -> None:
        self.session, self.state = session, state
        self.lock = take_lock(session.parts)
        left = saved(Path(session.output), session.parts, session.id)
        self.is_final, self._final_steps, self._final_calls = left.final, left.steps, left.calls
        """Whether an earlier collector was killed after the final file was in place: only cleaning up is left."""
        self.store = Store(Path(session.output), left.parts, left.serial)
        self.nvml = Nvml()
        self.ring_directory = session.rings()
        self.rings = Rings(self.ring_directory, session.max_steps)
        self.notes: list[str] = list(session.notes if left.notes is None else left.notes)
        self.ended_by: str | None = None
        self.published = time.monotonic()
        self.unwritten: list[tuple[schema.Table, ColumnArrays, Engine]] = []
        """Decoded, and in no part yet: a disk that was full may have room the next time."""
        self.safe_steps = self._final_steps
        """Steps that are published: no failure from here on loses them."""
        try:
            self.rings.restore(left.rings)
        except TraceError:
            raise
        except Exception as error:  # whatever a lie may lead to in there
            raise damaged(Path(session.output), error) from None
        self.safe_steps = self.num_steps
        if self.nvml.missing:
            self.note(self.nvml.missing)
        if self.ring_directory is None and not self.is_final:
            self.note("the rings of this recording are gone: what was not published before is lost")

    def note(self, text: str) -> None:
        """Something that this recording cannot see, said once."""
        if text not in self.notes:
            self.notes.append(text)

    @property
    def num_steps(self) -> int:
        """Steps decoded so far."""
        if self.is_final:
            return self._final_steps
        return sum(engine.num_steps for engine in self.rings.engines)

    @property
    def num_calls(self) -> int:
        """Scheduling calls decoded so far that handed something out or found work."""
        return self._final_calls + sum(engine.call_rows.num_calls for engine in self.rings.engines)

    @property
    def ended(self) -> bool:
        """Whether every process that wrote has stopped, or has written all the steps that were asked for."""
        return bool(self.tails) and all(tail.ended for tail in self.tails)

    @property
    def why_ended(self) -> str:
        """`steps`: as many are decoded as were asked for; `detach`: every agent ended by itself; else `exit`."""
        if any(engine.full for engine in self.rings.engines):
            return "steps"
        return "detach" if all(tail.reader.closed for tail in self.tails) else "exit"

    @property
    def behind(self) -> bool:
        """Whether so much is decoded that it should be published before more is read."""
        return any(engine.unflushed >= FLUSH_STEPS for engine in self.rings.engines)

    @property
    def rings_are_full(self) -> bool:
        """Whether a writer is about to overwrite what was not read."""
        return any(tail.is_full for tail in self.tails)

    @property
    def tails(self) -> list[RingTail]:
        """The rings that were found."""
        return list(self.rings.tails.values())

    def discover(self) -> None:
        """Open the rings that have come since."""
        self.rings.discover()

    def read(self, final: bool = False) -> int:
        """Decode what was committed since the last call; the number of frames read."""
        return self.rings.read(final)

    def publish(self) -> None:
        """Commit what was decoded, together with the positions up to which it was."""
        self._decode_all()
        self._write_parts()
        self.nvml.forget()
        self.store.compact()
        for text in self.rings.problems():
            self.note(text)
        self.store.publish(self.small_tables(), self._saved())
        self.published = time.monotonic()
        self.safe_steps = self.num_steps

    def _decode_all(self, final: bool = False) -> None:
        for engine in self.rings.engines:
            decoded = self.rings.taken(engine, 0 if final else self.rings.read_at)
            try:
                self._add(engine, decoded)
            except (OverflowError, ValueError, TypeError) as error:
                self.rings.spoil(engine, error)

    def _add(self, engine: Engine, decoded: Decoded) -> None:
        for columns in decoded.steps:
            columns["device_used_bytes"] = self.nvml.used(
                self._device_pid(engine), columns["ts"] + 1000 * columns["forward_us"]
            )
        for table, parts in (
            (schema.STEP, decoded.steps),
            (schema.STEP_REQUEST, decoded.step_requests),
            (schema.CALL, decoded.calls),
            (schema.CALL_REQUEST, decoded.call_requests),
        ):
            if parts:
                joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
                self.unwritten.append((table, joined, engine))
        for table, tuples in (
            (schema.RANK_MEMORY, decoded.rank_memory),
            (schema.REQUEST, decoded.requests),
            (schema.EVENT, decoded.events),
        ):
            if tuples:
                self.unwritten.append((table, columns_of(table, tuples), engine))

    def _write_parts(self) -> None:
        """Write what was decoded, and forget each piece once it is in a part. What does not fit its column is dropped,
        with its engine: no agent writes such numbers.
        """
        while self.unwritten:
            table, columns, engine = self.unwritten[0]
            try:
                self.store.add(table, columns)
            except duckdb.DataError as error:
                self.rings.spoil(engine, error)
            del self.unwritten[0]

    def _device_pid(self, engine: Engine) -> int:
        """The process that runs an engine's forwards."""
        mine = [tail for tail in self.tails if tail.decoder is engine]
        parts = [(tail, tail.part) for tail in mine if tail.part is not None]
        runs = [tail for tail, part in parts if part.kind == "worker"]
        runs = runs or [tail for tail, part in parts if part.kind == "rank" and part.rank == 0]
        return int((runs or mine)[0].reader.pid) if mine else 0

    def _saved(self) -> dict[str, Any]:
        return {
            "session": self.session.id,
            "notes": self.notes,
            "rings": self.rings.state(),
        }

    def small_tables(self) -> dict[str, ColumnArrays]:
        """The tables that are whole in each published database."""
        ended = time.time_ns() if self.ended_by else None
        trace = (
            schema.SCHEMA_VERSION, __version__, self.session.created_at, ended, self.state, self.ended_by,
            json.dumps(self.notes),
        )  # fmt: skip
        live = [row for engine in self.rings.engines for row in engine.ledger.live_rows()]
        return {
            "trace": columns_of(schema.TRACE, [trace]),
            "engine": columns_of(
                schema.ENGINE, [self._engine_row(engine) for engine in self.rings.engines if engine.row]
            ),
            "_live_request": columns_of(schema.REQUEST, live),
            "_live_call": self._live_calls(),
        }

    def _live_calls(self) -> ColumnArrays:
        parts = [CallRows(MISSING).live(), *(engine.call_rows.live() for engine in self.rings.engines)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _engine_row(self, engine: Engine) -> tuple[Any, ...]:
        mine = [tail.reader.opened_ns for tail in self.tails if tail.decoder is engine]
        opened = min(mine, default=self.session.created_at)
        known = dict(engine.row or {}, engine_id=engine.engine_id, started_at=opened)
        known["config"], known["env"] = json.dumps(known.get("config")), json.dumps(known.get("env"))
        return tuple(fitting(known.get(column.name), column) for column in schema.ENGINE.columns)

    def finish(self, ended_by: str, state: str = "complete") -> None:
        """Read what is left, write the final file, and clean up; nothing is removed before it is in that file."""
        self.prepare_end(ended_by, state)
        self.publish()
        finish.write_final(self.store, self.small_tables())
        self.clean_up()

    def prepare_end(self, ended_by: str, state: str = "complete") -> None:
        """Decode what is left. Once; `publish` and `write_final` may be tried again."""
        self.discover()
        while self.read(final=True):
            self._decode_all()
            with contextlib.suppress(OSError, duckdb.Error):  # `publish` tries again, and tells
                self._write_parts()
        self._decode_all(final=True)
        self.ended_by, self.state = ended_by, state

    def clean_up(self) -> None:
        """The final file is in place: remove the rings and the parts."""
        for tail in self.tails:
            tail.reader.close()
        if self.ring_directory is not None:
            self.ring_directory.remove()
            self.ring_directory.close()
        self.store.close()
        finish.remove_parts(self.store)
        os.close(self.lock)


def take_lock(parts: Path) -> int:
    """A descriptor that holds the lock of a recording. TraceError where somebody records to it, or where it is gone."""
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(parts / LOCK, flags, 0o600)
    except OSError as error:
        raise TraceError(f"{parts} cannot be used", why=str(error)) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise TraceError(
            f"{parts} is being recorded to",
            why="another collector holds its lock",
            hint="`fdtrace status` shows it; `fdtrace detach PID` ends it",
        ) from None
    return fd


def fitting(value: Any, column: schema.Column) -> Any:
    """A value of an engine's row, or None where it is none that its column can hold."""
    if column.type in TEXT:
        return None if value is None else str(value).encode(errors="replace").decode()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and -(1 << 31) < value < 1 << (63 if column.type in WIDE else 31):
        return value
    return None


def make_files_private() -> None:
    """From now on this process makes files that only its user may read, and no more than its umask allows: a trace
    tells who asked a server for what, and when.
    """
    os.umask(os.umask(0o077) | 0o077)


def recover(session: Session, stop_agents: Callable[[], None] = lambda: None) -> int:
    """Finish a recording whose collector is gone; the number of its steps. `stop_agents` is called once it is sure."""
    make_files_private()
    collector = Collector(session)
    if collector.ring_directory is not None:  # else it is not said that its agents are this recording's
        stop_agents()
    try:
        if collector.is_final:
            collector.clean_up()
        else:
            collector.finish("cut off", state="recovered")
    except (OSError, duckdb.Error) as error:
        collector.store.reset()
        raise failures.cannot_go_on(collector, error) from None
    return collector.num_steps
