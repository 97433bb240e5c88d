"""The flight recorder beside a collector: it watches the decoded rows, trims the ring, and keeps what was asked for.

    steps, events ── watchers ── firing ──┬─ too soon after another: counted
                                          ╰─ a trace that waits for its end
    published parts ── segments ── the oldest go          │ due
                          ╰──────────────────────── spool (hard links) ── finish_keep ── NAME.duckdb

All of it is decided between two publications, and its state is committed with the rows. So a collector that is killed
is followed by one that decides the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fdtrace.recorder.collector.engine import Decoded, Engine
from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.flight.drafter_excess import DrafterExcess
from fdtrace.recorder.flight.firing import FiredTrigger, Watcher, errors_in
from fdtrace.recorder.flight.flight_directory import FlightDirectory
from fdtrace.recorder.flight.flight_plan import FlightPlan
from fdtrace.recorder.flight.flight_segments import DropWatcher, FlightSegments
from fdtrace.recorder.flight.flight_store import FlightStore
from fdtrace.recorder.flight.keep_finisher import KeepFinisher
from fdtrace.recorder.flight.keep_queue import KeepQueue
from fdtrace.recorder.flight.keep_spool import set_aside
from fdtrace.recorder.flight.standstill_watch import StandstillWatch

Tell = Callable[[str], None]
"""Receives a sentence for the user."""


class FlightRecorder:
    """Everything of a flight recorder besides the recording itself.

    Args:
        plan: its limits.
        directory: where the ring and the kept traces lie.
        store: the ring's parts.
        begins: when the recording began, ns, UTC.
        watchers: the conditions.
        dropped: gets what the ring drops; None: nobody does.
    """

    def __init__(
        self, plan: FlightPlan, directory: FlightDirectory, store: FlightStore, begins: int,
        watchers: Sequence[Watcher], dropped: DropWatcher | None = None,
    ) -> None:  # fmt: skip
        self.plan, self.directory, self.store, self.watchers = plan, directory, store, watchers
        self.segments = FlightSegments(plan, store, begins)
        self.segments.watcher = dropped
        self.queue = KeepQueue(plan)
        self.finisher = KeepFinisher(directory)
        self.hangs = StandstillWatch(directory.ring)
        self.drafters = DrafterExcess()
        self.newest = begins
        """The latest time of a decoded row, ns, UTC."""
        self.num_kept = 0
        self._undated: dict[int, Sequence[Sequence[Any]]] = {}
        """By engine, events that are in no part yet, as of the last publication."""
        self.asked = ""
        """Why a trace is to be kept at once; empty: nobody asked."""
        answers = directory.status().get("answers")
        self.answers: dict[str, str] = answers if isinstance(answers, dict) else {}
        """The last requests of `fdtrace keep`, and the names of their traces."""
        self.tell: Tell = lambda text: None
        directory.remove_halves()

    def see(self, engine: Engine, decoded: Decoded) -> None:
        """Take the rows of an engine that were just decoded."""
        row = engine.row or {}
        self.segments.note(engine.engine_id, decoded.checkpoints)
        self._undated[engine.engine_id] = decoded.undated_events
        self.drafters.add_column(engine.engine_id, decoded)
        for columns in decoded.steps:
            if len(columns["ts"]):
                self.newest = max(self.newest, int(columns["ts"].max()))
            for watcher in self.watchers:
                for firing in watcher.see(engine.engine_id, row, columns):
                    self.fire(firing)
        for columns in decoded.calls:
            if len(columns["last_ts"]):
                self.newest = max(self.newest, int(columns["last_ts"].max()))
        for firing in errors_in(decoded.events):
            self.fire(firing)

    def fire(self, firing: FiredTrigger) -> None:
        """A trigger fired."""
        self.queue.fire(firing, self.segments.all[0].serial)

    @property
    def now(self) -> int:
        """The time of the recording, ns, UTC: it goes on while the engine is idle."""
        return max(self.newest, time.time_ns())

    def is_still(self, engines: Sequence[Engine]) -> bool:
        """Whether there is nothing to do that time alone brings: to keep, to drop, or to look at."""
        keeps = self.asked or self.queue.waiting or self.directory.requests() or self.directory.spools
        return not (keeps or self.finisher.process) and (
            self.hangs.is_settled and self.segments.is_settled(self.now, engines)
        )

    def arrange(self, engines: Sequence[Engine]) -> None:
        """Before a publication: take requests, look for hangs, and trim the ring."""
        now, oldest = self.now, self.segments.all[0].serial
        for name, why in self.directory.requests().items():
            self.queue.ask(name, why, now, oldest)
        if self.asked:
            self.fire(FiredTrigger(self.asked, now, limited=False))
            self.asked = ""
        for firing in self.hangs.look(sum(engine.num_steps for engine in engines), now):
            self.fire(firing)
        self.segments.arrange(now, engines, self.queue.pinned)

    def committed(self) -> None:
        """After a publication: set aside what is due, and have it finished."""
        for keep in self.queue.due(self.now):
            segment = self.segments.window(keep.serial, before=keep.firings[0].ts)
            if not self.directory.is_taken(
                keep.name
            ):  # else a collector was killed right after it had done so
                set_aside(self.directory, self.store, self.plan, keep, segment, self._undated)
            self.queue.waiting.remove(keep)
            if keep.request:
                self.answers = {**dict(list(self.answers.items())[-9:]), keep.request: keep.name}
                self.directory.write_status(self.status("recording"))
                self.directory.remove_request(keep.request)
            self.num_kept += 1
            self.tell(f"keeping {keep.name}.duckdb: {keep.firings[0].sentence}")
        if self.finisher.poll() is not None:
            self.directory.retain(self.plan.keep)
        self.directory.write_status(self.status("recording"))

    def close(self) -> list[str]:
        """After the last publication: keep what waits, and finish all of it. Returns what went wrong."""
        self.queue.end(self.now)
        self.committed()
        _, problems = self.finisher.finish_all()
        self.directory.retain(self.plan.keep)
        self.directory.write_status(self.status("ended"))
        return problems

    def status(self, state: str) -> dict[str, Any]:
        """What `flight.json` says."""
        segments = self.segments.all
        return {
            "state": state,
            "plan": self.plan.as_json(),
            "begins": segments[0].begins,
            "bytes": self.segments.num_bytes(segments[0].serial),
            "kept": [path.name for path in self.directory.kept],
            "waiting": [keep.name for keep in self.queue.waiting],
            "making": [path.name for path in self.directory.spools],
            "answers": self.answers,
            "num_suppressed": self.queue.num_suppressed,
        }

    def state(self) -> dict[str, Any]:
        """All that a successor needs to go on, as JSON."""
        dropped = self.segments.watcher
        return {
            "dropped": None if dropped is None else dropped.state(),
            "segments": self.segments.state(), "queue": self.queue.state(), "newest": self.newest,
            "num_kept": self.num_kept, "watchers": {one.trigger: one.state() for one in self.watchers},
            "hangs": self.hangs.state(), "drafters": self.drafters.state(),
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved `state`. TraceError if it makes no sense."""
        try:
            self.segments.restore(state["segments"])
            self.queue.restore(state["queue"])
            self.hangs.restore(state["hangs"])
            self.drafters.restore(state.get("drafters", {}))
            if self.segments.watcher is not None and state.get("dropped"):
                self.segments.watcher.restore(state["dropped"])
            self.newest, self.num_kept = int(state["newest"]), int(state["num_kept"])
            for watcher in self.watchers:
                if watcher.trigger in state["watchers"]:
                    watcher.restore(state["watchers"][watcher.trigger])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TraceError(
                f"the flight recorder in {self.directory.path} cannot be continued",
                why=f"the state that its collector saved is damaged ({type(error).__name__}: {error})",
                hint=f"its parts are Parquet files, which any DuckDB reads: {self.directory.parts}",
            ) from None
