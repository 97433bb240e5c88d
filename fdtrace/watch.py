"""What `attach`, `record` and `demo` share: they watch a session's collector until the trace is finished."""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from fdtrace.progress import Progress
from fdtrace.recorder import attach_server
from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.session import Session
from fdtrace.recorder.supervise import Supervisor

if TYPE_CHECKING:
    from fdtrace.metrics.server import MetricsServer


def add_recording_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that records."""
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="TRACE", help="the trace to write"
    )
    parser.add_argument("--duration", type=float, metavar="S", help="end after S seconds")
    parser.add_argument("--steps", type=int, metavar="N", help="end after N steps, exactly")
    parser.add_argument(
        "--ring-mib",
        type=int,
        default=8,
        metavar="MIB",
        help="memory a process: how far the collector may fall behind (default 8)",
    )
    parser.add_argument(
        "--metrics",
        metavar="[HOST:]PORT",
        help="answer Prometheus there while it records (without HOST: on the loopback); docs/metrics.md",
    )


def check_arguments(args: argparse.Namespace) -> None:
    """UsageError if a limit is not above 0."""
    for name in ("steps", "duration", "ring_mib"):
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise UsageError(f"--{name.replace('_', '-')} is {value}", hint="give more than 0")


@contextmanager
def serving_metrics(args: argparse.Namespace) -> Iterator[MetricsServer | None]:
    """Within the `with` block, `--metrics` is answered. None if the option was not given: then nothing is imported."""
    if args.metrics is None:
        yield None
        return
    from fdtrace.metrics.server import serving

    with serving(args.metrics) as metrics:
        yield metrics


class StopSignals(AbstractContextManager["StopSignals"]):
    """In this context SIGINT and SIGTERM set `reason` and interrupt nothing. A second SIGINT interrupts."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def __enter__(self) -> StopSignals:
        self._old = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = "interrupt" if number == signal.SIGINT else "terminate"

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


class CollectorWatch:
    """Watches a session from the collector's start to the finished trace."""

    def __init__(
        self,
        session: Session,
        supervisor: Supervisor,
        duration: float | None = None,
        metrics: MetricsServer | None = None,
    ) -> None:
        self.session, self.supervisor = session, supervisor
        self.progress = Progress()
        self.begun = time.monotonic()
        self.duration = duration
        self.num_steps = self.num_calls = 0
        self.asked = ""
        """Why a flight recorder is to keep a trace now; empty: nobody asked."""
        if session.flight is not None:
            signal.signal(signal.SIGUSR1, self._keep)
        if metrics is not None:
            metrics.follow(Path(session.output), supervisor)
            self.progress.note(f"metrics: {metrics.url}")

    def _keep(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = "SIGUSR1"

    def messages(self, timeout: float) -> None:
        """Take the collector's messages of the next `timeout` seconds, and show the progress."""
        if self.asked:
            self.supervisor.order({"keep": self.asked})
            self.asked = ""
        for message in self.supervisor.poll(timeout):
            self.num_steps = message.get("steps", self.num_steps)
            self.num_calls = message.get("calls", self.num_calls)
            if "waiting" in message:
                self.progress.note(message["waiting"])
            if "told" in message:
                self.progress.note(message["told"])
            for note in message.get("notes", ()):
                self.progress.note(note)
        elapsed = time.monotonic() - self.begun
        counts = f"{self.num_steps} steps, {self.num_calls} calls"
        self.progress.update(f"recording to {self.session.output}: {counts}, {elapsed:.0f} s")

    def until(self, should_end: Callable[[], str | None]) -> str:
        """Record until `should_end` gives a reason or a limit of this recording is reached. Returns the reason."""
        while self.supervisor.finished is None:
            reason = should_end()
            if self.supervisor.ended == "steps":
                reason = "steps"
            elif self.duration is not None and time.monotonic() - self.begun >= self.duration:
                reason = "duration"
            if reason:
                return reason
            self.messages(0.05)
        return ""

    def stop(self, reason: str) -> None:
        """Detach the agents, and let the collector finish."""
        for note in attach_server.detach(self.session.id, reason):
            self.progress.note(note)
        self.supervisor.end(reason)

    def fail(self) -> None:
        """The collector cannot go on: detach the agents. The server continues without fdtrace."""
        self.progress.done()
        for note in attach_server.detach(self.session.id, "error"):
            self.progress.note(note)
        self.progress.note("no longer attached: the server goes on as before")

    def finish(self) -> dict[str, Any]:
        """Wait for the final file. Returns the collector's last message."""
        while self.supervisor.finished is None:
            self.messages(0.2)
        self.progress.done()
        return self.supervisor.finished


def conclude(watch: CollectorWatch, done: dict[str, Any]) -> None:
    """Say what the finished trace holds: its steps, and whether an engine stood still at the end."""
    from fdtrace.recorder.trace.standstill import standstill
    from fdtrace.recorder.trace.trace import open_trace

    if watch.session.flight is not None:
        _conclude_flight(watch, done["steps"])
        return
    output, steps, calls = watch.session.output, done["steps"], done["calls"]
    why = (
        ""
        if steps
        else f": no forward ran; {calls} scheduling calls found work"
        if calls
        else ": the engine had no work"
    )
    watch.progress.note(f"{steps} steps in {output}{why}")
    with open_trace(Path(output)) as trace:
        for engine in trace.engines():
            still = standstill(trace, engine)
            if still is not None:
                watch.progress.note(f"engine {engine['engine_id']}: {still.sentence}")


def _conclude_flight(watch: CollectorWatch, steps: int) -> None:
    """Say which traces were kept."""
    from fdtrace.recorder.flight.flight_directory import FlightDirectory

    directory = FlightDirectory(Path(watch.session.output).parent)
    kept = directory.kept
    names = "".join(f"\n{path.name}" for path in kept[-5:])
    watch.progress.note(
        f"{steps} steps recorded; kept in {directory.path}: {len(kept)} trace{'' if len(kept) == 1 else 's'}{names}"
    )


def discard(session: Session, supervisor: Supervisor | None) -> None:
    """Nothing was recorded: leave nothing behind."""
    from fdtrace.recorder.collector.saved_state import remove_published  # brings DuckDB: not for `--help`

    if supervisor is not None:
        supervisor.cancel()
    remove_published(Path(session.output), session.parts, session.id)
    session.discard()
