"""The collector of a flight recorder: it has a ring in place of a final file."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fdtrace.recorder.collector.engine import Decoded, Engine
from fdtrace.recorder.collector.process import Collector, make_files_private
from fdtrace.recorder.collector.saved_state import SavedState
from fdtrace.recorder.collector.store import Store
from fdtrace.recorder.flight.firing import FiredTrigger, Watcher
from fdtrace.recorder.flight.flight import FlightRecorder
from fdtrace.recorder.flight.flight_directory import FlightDirectory
from fdtrace.recorder.flight.flight_plan import FlightPlan
from fdtrace.recorder.flight.flight_segments import DropWatcher
from fdtrace.recorder.flight.flight_store import FlightStore
from fdtrace.recorder.session import Session


class FlightCollector(Collector):
    """Collects into a ring, keeps traces of it. `watchers`: the conditions. `dropped`: as of `FlightRecorder`."""

    def __init__(
        self, session: Session, watchers: Sequence[Watcher] = (), *, state: str = "recording",
        dropped: DropWatcher | None = None,
    ) -> None:  # fmt: skip
        self.watchers, self.dropped = watchers, dropped
        super().__init__(session, state=state)

    def open_store(self, saved: SavedState) -> Store:
        """As `Collector.open_store`. The flight's own state comes with it."""
        output = Path(self.session.output)
        store = FlightStore(output, saved.parts, saved.serial, saved.live)
        plan = FlightPlan.from_json(self.session.flight)
        directory = FlightDirectory(output.parent)
        self.flight = FlightRecorder(
            plan, directory, store, self.session.created_at, self.watchers, self.dropped
        )
        if saved.flight:
            self.flight.restore(saved.flight)
        return store

    def obey(self, order: dict[str, Any]) -> None:
        """Keep what is there now: `{"keep": WHY}`."""
        if "keep" in order:
            self.flight.asked = str(order["keep"])

    def add(self, engine: Engine, decoded: Decoded) -> None:
        """As `Collector.add`. The triggers see the rows too."""
        super().add(engine, decoded)
        self.flight.see(engine, decoded)

    @property
    def is_idle(self) -> bool:
        """As `Collector.is_idle`. As time goes on, the ring is trimmed, a standstill noticed, and a trace kept."""
        return super().is_idle and self.flight.is_still(self.rings.engines)

    def arrange_parts(self) -> None:
        """As `Collector.arrange_parts`: trim the ring."""
        self.flight.arrange(self.rings.engines)

    def saved_state(self) -> dict[str, Any]:
        """As `Collector.saved_state`."""
        return {**super().saved_state(), "flight": self.flight.state()}

    def publish(self) -> None:
        """As `Collector.publish`. Then keep what is due."""
        super().publish()
        self.flight.committed()

    def prepare_end(self, ended_by: str, state: str = "complete") -> None:
        """As `Collector.prepare_end`. If the engine died, or the recording was cut off, that is a trigger."""
        super().prepare_end(ended_by, state)
        if is_death(ended_by):
            self.flight.fire(FiredTrigger("death", self.flight.newest, why=ended_by, limited=False))

    def write_final(self) -> None:
        """A ring has no final file: what waits is kept now."""
        for problem in self.flight.close():
            self.flight.tell(problem)

    def clean_up(self) -> None:
        """Remove the ring. Spools that could not be finished stay, for `fdtrace recover`."""
        published = Path(self.session.output)
        super().clean_up()
        with contextlib.suppress(OSError):
            if self.store.published is not None:
                published.unlink()


def is_death(ended_by: str) -> bool:
    """Whether an ending is none that anybody ordered: the engine's process ended, failed, or the collector was killed.

    Of a process that it did not start, `fdtrace attach` sees only that it has ended.
    """
    return ended_by in ("exit", "cut off") or (
        ended_by.startswith(("exit ", "signal ")) and ended_by != "exit 0"
    )


def recover_flight(session: Session, stop_agents: Any) -> list[str]:
    """Keep what a flight recorder left that was cut off, and remove its ring. Returns the names of the kept traces.

    Args:
        session: its session.
        stop_agents: called once it is certain that no collector works on it.
    """
    make_files_private()
    collector = FlightCollector(session)
    try:
        if collector.ring_directory is not None:
            stop_agents()
        before = set(collector.flight.directory.kept)
        collector.finish("cut off", state="recovered")
    finally:
        collector.leave()
    return [path.name for path in collector.flight.directory.kept if path not in before]
