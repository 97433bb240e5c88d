"""Which engine a worker belongs to: what both share tells it, and never which process started them."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fdtrace.recorder.agent import ring, wire
from fdtrace.recorder.agent.writer import KeyframeRow, Writer
from fdtrace.recorder.collector.many_processes import ManyProcessEngine
from fdtrace.recorder.collector.rings import Rings
from fdtrace.recorder.collector.worker_engine import may_be
from fdtrace.recorder.session import Session

SIZE = 1 << 18


class Deployment:
    """An engine process and its worker, as the rings that their agents write. Each begins when it is told to."""

    def __init__(self, directory: str, token: int, **described: Any) -> None:
        self.directory, self.token, self.described = directory, token, {"host": "h", **described}

    def _writer(self, part: str, **more: Any) -> Writer:
        name = f"{self.directory}/{self.token}-{ord(part[0])}{more.get('rank', 0)}.ring"
        about = {"part": part, **self.described, **more}
        page = ring.create(name, wire.PROTOCOL, time.time_ns(), 4, SIZE)
        row = KeyframeRow(f"r{self.token}", 8, 9, 8, 1, 0, 0)
        writer = Writer(page, 4, SIZE, lambda: about, lambda: [(0, row)])
        writer.boundary()
        return writer

    def start_worker(self) -> Deployment:
        """Its worker runs, without tasks yet."""
        self.worker = self._writer("worker", rank=0)
        return self

    def start_engine(self) -> Deployment:
        """Its engine schedules for the first time."""
        self.engine = self._writer("engine", token=self.token, ts=1)
        return self

    def run(self, steps: int, *, stamped: bool = True) -> Deployment:
        """A call, and so many forwards of its tasks. `stamped`: the tasks name their call."""
        tokens = memoryview(array("h", [1]))
        if hasattr(self, "engine"):
            figures = wire.CallFigures(token_budget=64, num_running=1, num_waiting=0)
            self.engine.schedule(0, time.time_ns(), 1, "", figures, 0)
        if stamped:
            self.worker.tasks(0, self.token)
        for step in range(steps):
            self.worker.forward(
                step, 0 if stamped else -1, time.time_ns(), 1, -1, wire.AllocatorFigures(), b"", b"", tokens, tokens,
                wire.LANDED,
            )  # fmt: skip
        return self

    def end(self) -> Deployment:
        """The engine's process is gone: its ring names a process that is no more."""
        for path in Path(self.directory).glob(f"{self.token}-{ord('e')}*.ring"):
            with path.open("r+b") as file:
                header = list(ring.HEADER.unpack(file.read(ring.HEADER.size)))
                header[5] += 1
                file.seek(0)
                file.write(ring.HEADER.pack(*header))
        return self


@pytest.fixture
def recording(tmp_path: Path) -> tuple[Callable[..., Deployment], Rings]:
    session = Session.create(tmp_path / "t.duckdb")
    return lambda token, **described: Deployment(session.dir, token, **described), Rings(
        session.rings(), None
    )


def look(rings: Rings) -> None:
    """What the collector does about twice a second."""
    rings.discover()
    rings.read()


def decoded(rings: Rings) -> list[tuple[Any, ...]]:
    """For each engine of the recording at its end: its role, its calls and its steps."""
    rings.read(final=True)
    engines = [engine for engine in rings.engines if isinstance(engine, ManyProcessEngine) and engine.row]
    assert rings.problems() == []
    return sorted(
        ((engine.row or {}).get("role") or "", engine.call_rows.num_calls, engine.num_steps)
        for engine in engines
    )


Deploy = tuple[Callable[..., Deployment], Rings]


@pytest.mark.parametrize("stamped", [True, False], ids=["tasks name their call", "no task comes"])
@pytest.mark.parametrize(
    "second",
    [{"role": "prefill"}, {"role": "decode"}, {"role": "decode", "dp_rank": 1}],
    ids=["two roles", "two deployments", "two ranks"],
)
def test_a_worker_that_waits_for_its_engine_is_not_given_to_another(
    recording: Deploy, second: dict[str, Any], stamped: bool
) -> None:
    deploy, rings = recording
    late = deploy(2, message_queue="9002", **second).start_worker()
    look(rings)
    early = deploy(1, message_queue="9001", role="decode").start_worker().start_engine()
    early.run(3, stamped=stamped)
    look(rings)
    late.start_engine().run(5, stamped=stamped)
    look(rings)
    assert decoded(rings) == sorted([("decode", 1, 3), (second["role"], 1, 5)])


def test_a_worker_of_an_engine_that_is_not_recorded_is_an_engine_of_its_own(recording: Deploy) -> None:
    deploy, rings = recording
    alone = deploy(2, message_queue="9002", role="mixed").start_worker()
    deploy(1, message_queue="9001", role="mixed").start_worker().start_engine().run(3)
    look(rings)
    alone.run(5, stamped=False)
    look(rings)
    assert decoded(rings) == [("mixed", 0, 5), ("mixed", 1, 3)]


@pytest.mark.parametrize("stamped", [True, False], ids=["tasks name their call", "no task comes"])
def test_a_worker_of_a_restarted_engine_is_not_given_to_the_one_before(
    recording: Deploy, stamped: bool
) -> None:
    """The second engine takes the port of the first, and its worker runs before it schedules."""
    deploy, rings = recording
    deploy(1, message_queue="9001", role="mixed").start_worker().start_engine().run(3).end()
    look(rings)
    again = deploy(2, message_queue="9001", role="mixed").start_worker()
    look(rings)
    again.start_engine().run(5, stamped=stamped)
    look(rings)
    assert decoded(rings) == [("mixed", 1, 3), ("mixed", 1, 5)]


def test_a_worker_without_tasks_is_read_while_it_runs_if_it_shares_its_engines_queue(
    recording: Deploy,
) -> None:
    deploy, rings = recording
    deploy(1, message_queue="9001").start_engine().start_worker().run(3, stamped=False)
    look(rings)
    assert [engine.num_steps for engine in rings.engines] == [3]


def test_without_a_queue_a_worker_waits_for_a_task_and_in_the_end_gets_the_engine_that_lacks_one(
    recording: Deploy,
) -> None:
    deploy, rings = recording
    deploy(1).start_worker().start_engine().run(3, stamped=False)
    deploy(2).start_worker().start_engine().run(5)
    look(rings)
    assert [engine.num_steps for engine in rings.engines] == [0, 5]
    assert decoded(rings) == [("", 1, 3), ("", 1, 5)]


@pytest.mark.parametrize(
    ("key", "its"),
    [("host", "b"), ("dp_rank", 1), ("role", "prefill"), ("message_queue", "9002"), ("pid", 9)],
)
def test_a_worker_may_be_of_an_engine_that_is_described_alike(key: str, its: Any) -> None:
    engine = {"host": "a", "dp_rank": 0, "role": "decode", "message_queue": "9001", "pid": 8}
    about = engine | {key: its}
    assert may_be(engine, about) is (key == "pid")
    assert may_be(engine, about | {key: None})
