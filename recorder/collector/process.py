"""The collector: tails every ring of one session until it ends, then leaves one self-contained trace."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from fdtrace.recorder import __version__, schema
from fdtrace.recorder.collector import finish
from fdtrace.recorder.collector.call_rows import CallRows
from fdtrace.recorder.collector.columns import Columns
from fdtrace.recorder.collector.engine import Decoded, Engine
from fdtrace.recorder.collector.nvml import Nvml
from fdtrace.recorder.collector.rings import FLUSH_STEPS, Rings, Tail
from fdtrace.recorder.collector.store import Store
from fdtrace.recorder.collector.tables import columns_of
from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.recording import MISSING
from fdtrace.recorder.session import Session

PUBLISH = 1.5
"""Seconds between two published states: with the time that one takes, what a reader sees is less than 2 s old."""


class Collector:
    """Reads, decodes and publishes one session. One at a time: it holds a lock in the parts directory."""

    def __init__(self, session: Session, *, state: str = "recording") -> None:
        self.session, self.state = session, state
        self.lock = _lock(session.parts)
        left = _last_state(Path(session.output))
        self.is_final, self._final_steps = bool(left.get("final")), int(left.get("steps", 0))
        self._final_calls = int(left.get("calls", 0))
        """Whether an earlier collector was killed after the final file was in place: only cleaning up is left."""
        self.store = Store(Path(session.output), left.get("parts"), left.get("serial", 0))
        self.nvml = Nvml()
        self.rings = Rings(session.dir, session.max_steps)
        self.notes: list[str] = list(left.get("notes", session.notes))
        self.ended_by: str | None = None
        self.published = time.monotonic()
        self.rings.restore(left.get("rings", {}))
        if self.nvml.missing:
            self.note(self.nvml.missing)

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
    def tails(self) -> list[Tail]:
        """The rings that were found."""
        return list(self.rings.tails.values())

    def discover(self) -> None:
        """Open the rings that have come since."""
        self.rings.discover()
        for text in self.rings.missing:
            self.note(text)

    def read(self, final: bool = False) -> int:
        """Decode what was committed since the last call; the number of frames read."""
        return self.rings.read(final)

    def publish(self) -> None:
        """Commit what was decoded, together with the positions up to which it was."""
        self._write_all()
        self.nvml.forget()
        self.store.compact()
        self.store.publish(self._small(), self._saved())
        self.published = time.monotonic()

    def _write_all(self, final: bool = False) -> None:
        for engine in self.rings.engines:
            self._write(engine, engine.take(0 if final else self.rings.read_at))

    def _write(self, engine: Engine, decoded: Decoded) -> None:
        for columns in decoded.steps:
            columns["device_used_bytes"] = self.nvml.used(
                self._device_pid(engine), columns["ts"] + 1000 * columns["forward_us"]
            )
        for table, parts in (
            (schema.STEP, decoded.steps),
            (schema.STEP_REQUEST, decoded.step_requests),
            (schema.CALL, decoded.calls),
        ):
            if parts:
                joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
                self.store.add(table, joined)
        for table, tuples in (
            (schema.RANK_MEMORY, decoded.rank_memory),
            (schema.REQUEST, decoded.requests),
            (schema.EVENT, decoded.events),
        ):
            if tuples:
                self.store.add(table, columns_of(table, tuples))

    def _device_pid(self, engine: Engine) -> int:
        """The process that runs an engine's forwards."""
        mine = [tail for tail in self.tails if tail.decoder is engine]
        parts = [(tail, tail.part) for tail in mine if tail.part is not None]
        runs = [tail for tail, part in parts if part.kind == "worker"]
        runs = runs or [tail for tail, part in parts if part.kind == "rank" and part.rank == 0]
        return int((runs or mine)[0].reader.pid)

    def _saved(self) -> dict[str, Any]:
        return {
            "session": self.session.id,
            "notes": self.notes,
            "rings": self.rings.state(),
        }

    def _small(self) -> dict[str, Columns]:
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

    def _live_calls(self) -> Columns:
        parts = [CallRows(MISSING).live(), *(engine.call_rows.live() for engine in self.rings.engines)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _engine_row(self, engine: Engine) -> tuple[Any, ...]:
        opened = min(tail.reader.opened_ns for tail in self.tails if tail.decoder is engine)
        known = dict(engine.row or {}, engine_id=engine.engine_id, started_at=opened)
        known["config"], known["env"] = json.dumps(known.get("config")), json.dumps(known.get("env"))
        return tuple(known.get(column.name) for column in schema.ENGINE.columns)

    def finish(self, ended_by: str, state: str = "complete") -> None:
        """Read what is left, write the final file, and clean up; nothing is removed before it is in that file."""
        self.discover()
        while self.read(final=True):
            self._write_all()
        self._write_all(final=True)
        self.ended_by, self.state = ended_by, state
        self.publish()
        finish.write_final(self.store, self._small())
        self.clean_up()

    def clean_up(self) -> None:
        """The final file is in place: remove the rings and the parts."""
        for tail in self.tails:
            tail.reader.close()
        self.session.remove_rings()
        self.store.close()
        finish.remove_parts(self.store)
        os.close(self.lock)


def _lock(parts: Path) -> int:
    fd = os.open(parts / "collector.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
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


def _last_state(path: Path) -> dict[str, Any]:
    """What the last collector of this recording committed; empty where there was none."""
    if not path.exists():
        return {}
    with duckdb.connect(str(path), read_only=True) as db:
        try:
            found = db.execute("SELECT state FROM _collector").fetchall()
        except duckdb.CatalogException:
            ((steps,),) = db.execute("SELECT count(*) FROM step").fetchall()
            ((calls,),) = db.execute("SELECT coalesce(sum(num_calls), 0)::BIGINT FROM call").fetchall()
            return {"final": True, "steps": steps, "calls": calls}
    return json.loads(found[0][0]) if found else {}


def recover(session: Session) -> int:
    """Finish a recording whose collector is gone; the number of its steps."""
    collector = Collector(session)
    if collector.is_final:
        collector.clean_up()
    else:
        collector.finish("cut off", state="recovered")
    return collector.num_steps
