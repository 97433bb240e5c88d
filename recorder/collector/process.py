"""The collector: follows every ring of one session until it ends, then leaves one trace file that needs no other."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb

from fdtrace.recorder import __version__, schema
from fdtrace.recorder.collector import failures, finish
from fdtrace.recorder.collector.call_rows import CallRows
from fdtrace.recorder.collector.engine import Decoded, Engine
from fdtrace.recorder.collector.nvml import Nvml
from fdtrace.recorder.collector.parts_lock import PartsLock
from fdtrace.recorder.collector.rings import Rings
from fdtrace.recorder.collector.saved_state import SavedState, damaged, read_saved_state
from fdtrace.recorder.collector.store import Store
from fdtrace.recorder.collector.tables import check_range, columns_of, fitting, joined
from fdtrace.recorder.collector.tail import FLUSH_STEPS, RingTail
from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.schema_tables import Table
from fdtrace.recorder.session import Session
from fdtrace.recorder.trace.column_values import MISSING, ColumnArrays

PUBLISH = 1.5
"""Seconds between two publications. With the time that one takes, a reader sees data that is less than 2 s old."""


STILL = 2
"""After so many publications without new frames, nothing more follows from those before (`many_processes.QUIET_NS`)."""


class Collector:
    """Reads, decodes and publishes one session. A lock in the parts directory keeps other collectors out."""

    def __init__(self, session: Session, *, state: str = "recording") -> None:
        self.session, self.state = session, state
        self.lock = PartsLock(session.parts)
        with contextlib.ExitStack() as failed:
            failed.callback(self.lock.release)
            self._take_up(read_saved_state(Path(session.output), session.parts, session.id))
            failed.pop_all()

    def _take_up(self, saved_state: SavedState) -> None:
        session = self.session
        self.is_final, self._final_steps, self._final_calls = (
            saved_state.final,
            saved_state.steps,
            saved_state.calls,
        )
        """Whether an earlier collector was killed after the final file was in place. Then only cleaning up remains."""
        self.store = self.open_store(saved_state)
        self.nvml = Nvml()
        self.ring_directory = session.rings()
        self.rings = Rings(self.ring_directory, session.max_steps)
        self.notes: list[str] = list(session.notes if saved_state.notes is None else saved_state.notes)
        self.ended_by: str | None = None
        self.published = time.monotonic()
        self._num_frames, self._num_published, self._num_still = 0, 0, 0
        """Frames read; how many of them were read by the last publication; publications since frames came."""
        self.unwritten: list[tuple[Table, ColumnArrays, Engine]] = []
        """Columns that are decoded but not in a part yet. If the disk was full, the next try may find room."""
        self.safe_steps = self._final_steps
        """Published steps: no later failure loses them."""
        try:
            self.rings.restore(saved_state.rings)
        except TraceError:
            raise
        except Exception as error:  # a saved state that lies may raise anything
            raise damaged(Path(session.output), error) from None
        self.safe_steps = self.num_steps
        if self.nvml.missing:
            self.note(self.nvml.missing)
        if self.ring_directory is None and not self.is_final:
            self.note("the rings of this recording are gone: what was not published before is lost")

    def open_store(self, saved: SavedState) -> Store:
        """Where the rows go. `saved`: what an earlier collector of this recording committed."""
        return Store(Path(self.session.output), saved.parts, saved.serial, saved.live)

    def obey(self, order: dict[str, Any]) -> None:
        """Carry out an order other than the one to end. There is none for an ordinary recording."""

    def note(self, text: str) -> None:
        """Note, once, something that this recording cannot see."""
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
        """Scheduling calls decoded so far, except calls that handed out nothing and found no work."""
        return self._final_calls + sum(engine.call_rows.num_calls for engine in self.rings.engines)

    @property
    def ended(self) -> bool:
        """Whether every writer has stopped, or has written all the steps that were asked for."""
        return bool(self.tails) and all(tail.ended for tail in self.tails)

    @property
    def why_ended(self) -> str:
        """`steps`: all steps that were asked for are decoded. `detach`: every agent closed its ring. Else `exit`."""
        if any(engine.full for engine in self.rings.engines):
            return "steps"
        return "detach" if all(tail.reader.closed for tail in self.tails) else "exit"

    @property
    def behind(self) -> bool:
        """Whether so much is decoded that it should be published before more is read."""
        return any(engine.unflushed >= FLUSH_STEPS for engine in self.rings.engines)

    @property
    def rings_are_full(self) -> bool:
        """Whether a writer will soon overwrite frames that were not read."""
        return any(tail.is_full for tail in self.tails)

    @property
    def tails(self) -> list[RingTail]:
        """The rings that were found so far."""
        return list(self.rings.tails.values())

    def discover(self) -> None:
        """Open the rings that are new since the last call."""
        self.rings.discover()

    def read(self, final: bool = False) -> int:
        """Decode what was committed since the last call. Returns the number of frames read."""
        frames = self.rings.read(final)
        self._num_frames += frames
        return frames

    @property
    def is_idle(self) -> bool:
        """Whether a publication could have nothing new: what followed from the last frames was published after them."""
        return (
            self._num_still >= STILL
            and self._num_frames == self._num_published
            and self.store.is_published
            and {*self.rings.problems()} <= {*self.notes}
        )

    def rest(self) -> None:
        """In place of a publication while it is idle."""
        self.store.retired.sweep()
        self.published = time.monotonic()

    def publish(self) -> None:
        """Commit what was decoded, together with the positions in the rings up to which it was decoded."""
        self._decode_all()
        self._write_parts()
        self.nvml.forget()
        self.arrange_parts()
        for text in self.rings.problems():
            self.note(text)
        self.store.publish(self.small_tables(), self.saved_state())
        self.published = time.monotonic()
        self._num_still = self._num_still + 1 if self._num_frames == self._num_published else 0
        self._num_published = self._num_frames
        self.safe_steps = self.num_steps

    def arrange_parts(self) -> None:
        """Between writing parts and committing them."""
        self.store.compact()

    def _decode_all(self, final: bool = False) -> None:
        for engine in self.rings.engines:
            decoded = self.rings.take(engine, 0 if final else self.rings.read_at)
            try:
                self.add(engine, decoded)
            except (OverflowError, ValueError, TypeError) as error:
                self.rings.reject(engine, error)

    def add(self, engine: Engine, decoded: Decoded) -> None:
        """Take rows of an engine, for the next parts."""
        for columns in decoded.steps:
            columns["device_used_bytes"] = self.nvml.used(
                self._device_pid(engine), columns["ts"] + 1000 * columns["forward_us"]
            )
        for table, pieces in (
            (schema.STEP, decoded.steps),
            (schema.STEP_REQUEST, decoded.step_requests),
            (schema.CALL, decoded.calls),
            (schema.CALL_REQUEST, decoded.call_requests),
        ):
            if pieces:
                self.unwritten.append((table, joined(pieces), engine))
        for table, tuples in (
            (schema.RANK_MEMORY, decoded.rank_memory),
            (schema.REQUEST, decoded.requests),
            (schema.EVENT, decoded.events),
        ):
            if tuples:
                self.unwritten.append((table, columns_of(table, tuples), engine))

    def _write_parts(self) -> None:
        """Write what was decoded into parts, and forget each piece once it is in a part.

        If a value does not fit its column, the piece is dropped and its engine's rings are read no further: no agent
        writes such numbers.
        """
        while self.unwritten:
            table, columns, engine = self.unwritten[0]
            try:
                self.store.add(table, columns)
            except ValueError as error:
                self.rings.reject(engine, error)
            del self.unwritten[0]

    def _device_pid(self, engine: Engine) -> int:
        """The pid of the process that runs an engine's forwards."""
        tails = self.rings.tails_of(engine)
        ring_parts = [(tail, tail.part) for tail in tails if tail.part is not None]
        workers = [tail for tail, part in ring_parts if part.kind == "worker"]
        workers = workers or [tail for tail, part in ring_parts if part.kind == "rank" and part.rank == 0]
        return int((workers or tails)[0].reader.pid) if tails else 0

    def saved_state(self) -> dict[str, Any]:
        """All that a successor needs to go on, as JSON."""
        return {
            "session": self.session.id,
            "notes": self.notes,
            "rings": self.rings.state(),
        }

    def small_tables(self) -> dict[str, ColumnArrays]:
        """The tables that each published database contains completely."""
        ended = time.time_ns() if self.ended_by else None
        trace = (
            schema.SCHEMA_VERSION, __version__, self.session.created_at, ended, self.state, self.ended_by,
            json.dumps(self.notes),
        )  # fmt: skip
        return {
            "trace": columns_of(schema.TRACE, [trace]),
            "engine": columns_of(
                schema.ENGINE, [self._engine_row(engine) for engine in self.rings.engines if engine.row]
            ),
            **self._live_tables(),
        }

    def _live_tables(self) -> dict[str, ColumnArrays]:
        """Requests and calls that go on. An engine whose numbers do not fit is left out, and its rings are rejected."""
        requests, calls = [columns_of(schema.REQUEST, [])], [CallRows(MISSING).live()]
        for engine in self.rings.engines:
            try:
                own_requests = columns_of(schema.REQUEST, engine.ledger.live_rows())
                own_calls = engine.call_rows.live()
                check_range(schema.REQUEST, own_requests)
                check_range(schema.CALL, own_calls)
            except (OverflowError, ValueError, TypeError) as error:
                self.rings.reject(engine, error)
                continue
            requests.append(own_requests)
            calls.append(own_calls)
        return {"_live_request": joined(requests), "_live_call": joined(calls)}

    def _engine_row(self, engine: Engine) -> tuple[Any, ...]:
        opened_times = [tail.reader.opened_ns for tail in self.rings.tails_of(engine)]
        opened = min(opened_times, default=self.session.created_at)
        values = dict(engine.row or {}, engine_id=engine.engine_id, started_at=opened)
        values["config"], values["env"] = json.dumps(values.get("config")), json.dumps(values.get("env"))
        return tuple(fitting(values.get(column.name), column) for column in schema.ENGINE.columns)

    def finish(self, ended_by: str, state: str = "complete") -> None:
        """Read the rest, write the final file, and clean up. Nothing is removed before it is in that file."""
        self.prepare_end(ended_by, state)
        self.publish()
        self.write_final()
        self.clean_up()

    def write_final(self) -> None:
        """Put the final file in place, after `prepare_end` and `publish`."""
        finish.write_final(self.store, self.small_tables())

    def prepare_end(self, ended_by: str, state: str = "complete") -> None:
        """Decode the rest of the rings. Call it once; `publish` and `write_final` may be tried again after it."""
        self.discover()
        while self.read(final=True):
            self._decode_all()
            with contextlib.suppress(OSError, duckdb.Error):  # `publish` tries again, and reports the error
                self._write_parts()
        self._decode_all(final=True)
        self.ended_by, self.state = ended_by, state

    def clean_up(self) -> None:
        """After the final file is in place: remove the rings and the parts."""
        for tail in self.tails:
            tail.reader.close()
        if self.ring_directory is not None:
            self.ring_directory.remove()
            self.ring_directory.close()
        self.store.close()
        finish.remove_parts(self.store)
        self.lock.release()

    def leave(self) -> None:
        """Leave the recording as it is, after a failure: another collector may take it up."""
        with contextlib.suppress(duckdb.Error):
            self.store.close()
        self.lock.release()


def make_files_private() -> None:
    """From now on, this process makes files that only its user may read. The umask may forbid still more.

    A trace shows who asked a server for what, and when.
    """
    os.umask(os.umask(0o077) | 0o077)


def recover(session: Session, stop_agents: Callable[[], None] = lambda: None) -> int:
    """Finish a recording whose collector is gone. Returns the number of its steps.

    `stop_agents` is called once it is certain that no collector works on the recording.
    """
    make_files_private()
    collector = Collector(session)
    try:
        if collector.ring_directory is not None:  # else nothing says that the agents belong to this recording
            stop_agents()
        if collector.is_final:
            collector.clean_up()
        else:
            collector.finish("cut off", state="recovered")
    except (OSError, duckdb.Error) as error:
        raise failures.cannot_go_on(collector.session, collector.safe_steps, error) from None
    finally:
        collector.leave()
    return collector.num_steps
