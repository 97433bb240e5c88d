"""The order in which an engine met its events, by the holds of its scheduler's lock."""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from fdtrace.recorder.agent.control import ForkMark
from fdtrace.recorder.agent.fastdeploy import FastDeployAdapter
from fdtrace.recorder.agent.fastdeploy_order import FastDeployOrder
from fdtrace.recorder.trace.trace import Trace, open_trace
from fdtrace.replayer.replay.deployment_replay import steps_by_call
from tests.fastdeploy.conftest import Stand
from tests.fastdeploy.test_contract import count, finished


class Manager:
    """A manager with sections of its lock as FastDeploy's has them."""

    def __init__(self) -> None:
        self.lock: Any = threading.Lock()
        scheduler = SimpleNamespace(splitwise_role="mixed")
        self.config = SimpleNamespace(scheduler_config=scheduler, cache_config=SimpleNamespace())
        self.running: list[Any] = []
        self.waiting: deque[Any] = deque()
        self.requests: dict[str, Any] = {}
        self.to_be_rescheduled_request_id_set: set[str] = set()
        self.to_be_aborted_req_id_set: set[str] = set()
        self.waiting_abort_req_id_set: set[str] = set()

    def schedule(self, fail: bool = False) -> bool:
        with self.lock:
            scheduled_reqs: list[Any] = []
            if fail:
                raise ValueError("the engine's own")
            return self.lock.locked() and not scheduled_reqs

    def add_abort_req_ids(self, req_ids: list[str]) -> None:
        with self.lock:
            self.waiting_abort_req_id_set.update(req_ids)

    def other(self) -> None:
        with self.lock:
            pass


class Ring:
    """What the frames would go to; `numbers` are the requests that a recording was told of."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {"a": 0}
        self.frames: list[bytes] = []
        self.ring = SimpleNamespace(lap=0)

    def put(self, payload: bytes, *, ends_idle: bool) -> None:
        if payload[0] == 255:
            raise OSError("the ring is gone")
        self.frames.append(payload)

    def event(self, kind: str, reason: str) -> None:
        self.frames.append(f"{kind} {reason}".encode())


@pytest.fixture
def ring() -> Ring:
    return Ring()


@pytest.fixture
def order(ring: Ring) -> FastDeployOrder:
    agent: Any = SimpleNamespace(
        lock=threading.Lock(), on=True, mark=ForkMark(os.getpid()), writer=ring, session=None
    )
    order = FastDeployOrder(agent, "", "")
    order.begin(ring)  # type: ignore[arg-type]
    return order


def test_the_stand_in_is_the_same_lock_and_gives_it_back(order: FastDeployOrder) -> None:
    manager = Manager()
    lock = manager.lock
    order.watch(manager)
    assert manager.lock is not lock
    assert manager.schedule()
    with manager.lock:
        assert lock.locked()
        assert not manager.lock.acquire(blocking=False)
    assert not lock.locked()
    assert manager.lock.acquire(timeout=1)
    manager.lock.release()
    order.end()
    assert manager.lock is lock


def test_another_thread_may_hold_the_lock_when_the_stand_in_takes_its_place(order: FastDeployOrder) -> None:
    manager, held, go = Manager(), threading.Event(), threading.Event()

    def hold() -> None:
        with manager.lock:
            held.set()
            go.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)
    order.watch(manager)
    done: list[bool] = []
    scheduler = threading.Thread(target=lambda: done.append(manager.schedule()))
    scheduler.start()
    assert not manager.lock.acquire(blocking=False)
    go.set()
    holder.join(30)
    scheduler.join(30)
    assert done == [True]
    order.end()
    assert not manager.lock.locked()


def test_a_holder_of_the_stand_in_gives_back_the_lock_after_it_has_gone(order: FastDeployOrder) -> None:
    manager = Manager()
    order.watch(manager)
    with manager.lock:
        order.end()
        assert manager.lock.locked()
    assert not manager.lock.locked()
    assert manager.schedule()


def test_an_error_of_the_engine_passes_and_leaves_the_lock_free(order: FastDeployOrder) -> None:
    manager = Manager()
    order.watch(manager)
    with pytest.raises(ValueError, match="the engine's own"):
        manager.schedule(fail=True)
    assert not manager.lock.locked()


def test_a_failure_of_the_order_ends_it_alone(order: FastDeployOrder, ring: Ring) -> None:
    """The recording goes on, and says that its order is lost."""
    manager = Manager()
    lock = manager.lock
    order.watch(manager)
    del manager.to_be_aborted_req_id_set
    assert manager.schedule()
    assert manager.lock is lock
    assert ring.frames[-1].startswith(b"lost order of calls: AttributeError")
    told = len(ring.frames)
    order.watch(manager)
    assert manager.schedule()
    assert (manager.lock, len(ring.frames)) == (lock, told)


def test_where_the_ring_has_failed_too_the_engine_sees_no_error(
    order: FastDeployOrder, ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_ring(kind: str, reason: str) -> None:
        raise OSError("the ring was cut")

    manager = Manager()
    lock = manager.lock
    order.watch(manager)
    del manager.to_be_aborted_req_id_set
    monkeypatch.setattr(ring, "event", no_ring)
    assert manager.schedule()
    assert manager.lock is lock


def test_an_interrupt_while_a_section_begins_leaves_the_lock_free(order: FastDeployOrder) -> None:
    manager = Manager()
    order.watch(manager)

    def interrupted(manager: Any, frame: Any) -> None:
        raise KeyboardInterrupt

    order.entering["schedule"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        manager.schedule()
    assert not manager.lock.locked()


def test_a_child_of_the_process_tells_nothing(order: FastDeployOrder, ring: Ring) -> None:
    manager = Manager()
    order.watch(manager)
    manager.schedule()
    told = len(ring.frames)
    order.agent.mark = ForkMark(os.getppid())
    manager.requests["a"] = SimpleNamespace(request_id="a")
    manager.add_abort_req_ids(["a"])
    assert len(ring.frames) == told


def test_what_comes_before_the_first_call_is_told_as_that_finds_it(
    order: FastDeployOrder, ring: Ring
) -> None:
    manager = Manager()
    order.watch(manager)
    manager.requests["a"] = SimpleNamespace(request_id="a")
    manager.add_abort_req_ids(["a", "not here yet"])
    assert ring.frames == []
    manager.schedule()
    assert len(ring.frames) == 2  # the reserve, and that `a` shall be aborted
    assert order.unknown_aborts == {"not here yet"}
    manager.other()
    assert len(ring.frames) == 2


class Reporting(Manager):
    """A manager whose `schedule()` calls the adapter's hook before it returns, as FastDeploy's does."""

    def __init__(self, adapter: FastDeployAdapter) -> None:
        super().__init__()
        self.adapter = adapter
        self.config.scheduler_config.max_num_batched_tokens = 8
        self.cache_manager = SimpleNamespace(gpu_free_block_list=[])

    def update_metrics(self) -> None:
        self.adapter.before_return(self, (), {})

    def schedule(self, fail: bool = False, scheduled_reqs: Any = ()) -> bool:
        with self.lock:
            self.update_metrics()
            if fail:
                raise ValueError("the engine's own")
            return True


@pytest.fixture
def reporting(order: FastDeployOrder, ring: Ring) -> Reporting:
    adapter = FastDeployAdapter(order.agent)
    adapter.begin(ring)  # type: ignore[arg-type]
    ring.boundary = lambda: None  # type: ignore[attr-defined]
    return Reporting(adapter)


def test_what_a_call_decided_cannot_be_read_then_the_order_ends_alone(
    reporting: Reporting, ring: Ring
) -> None:
    adapter, lock = reporting.adapter, reporting.lock
    adapter.before_schedule(reporting, (), {})
    assert reporting.schedule(scheduled_reqs=[SimpleNamespace(request_id="a")])  # a task without a type
    assert ring.frames[-1].startswith(b"lost order of calls: AttributeError")
    assert reporting.lock is lock
    assert adapter.seen is not None
    assert reporting.schedule()


def test_a_call_that_raises_after_it_decided_keeps_its_number(reporting: Reporting) -> None:
    """What it decided is written already: the next call must not have the same number."""
    adapter = reporting.adapter
    numbers = []
    for fail in (False, True, False):
        adapter.before_schedule(reporting, (), {})
        numbers.append(adapter.order.call)
        if fail:
            with pytest.raises(ValueError, match="the engine's own"):
                reporting.schedule(fail=True)
        else:
            reporting.schedule()
            adapter.seen = None  # as `after_schedule` does of a call that found nothing
    assert numbers == [0, 0, 1]


# The stand-in of FastDeploy, recorded by the real command --------------------------------------------------------


def changes(trace: Trace) -> dict[str, list[tuple[str, int]]]:
    """What changed the queues, for each request: kind and call, in order."""
    found: dict[str, list[tuple[str, int]]] = {}
    query = (
        "SELECT request_id, kind, call FROM event JOIN request USING (engine_id, request) WHERE call IS NOT NULL "
        "AND kind IN ('queued', 'abort_wanted', 'requeued', 'left', 'freed', 'recycled') ORDER BY call, ts"
    )
    for row in trace.rows(query):
        found.setdefault(row["request_id"], []).append((row["kind"], row["call"]))
    return found


def test_each_request_is_followed_through_the_queues(stand: Stand) -> None:
    stand, done = stand.recorded("--blocks", "60", "--aborts", "--skips")
    assert done.returncode == 0, done.stderr
    own = finished(done.stdout)
    with open_trace(stand.trace) as trace:
        found = changes(trace)
        assert len(found) == own["made"]
        kinds = {name: [kind for kind, _ in events] for name, events in found.items()}
        assert all(events[0] == "queued" for events in kinds.values())
        assert sum("left" in events for events in kinds.values()) == own["finished"]
        aborted = [name for name, events in kinds.items() if "recycled" in events]
        assert aborted
        assert all("abort_wanted" in kinds[name] for name in aborted)
        calls = [[call for _, call in events] for events in found.values()]
        assert calls == [sorted(of_one) for of_one in calls]
        preempted = count(trace, "SELECT count(*) FROM call_request WHERE did = 'preempted'")
        assert preempted == sum(events.count("requeued") for events in kinds.values()) > 0
        assert count(trace, "SELECT count(*) FROM call_request WHERE did = 'skipped'") > 0


def test_what_calls_did_is_what_the_workers_got(stand: Stand) -> None:
    stand, done = stand.recorded("--blocks", "60", "--aborts", "--skips")
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        chunks = "SELECT request, num_computed_tokens AS start, num_tokens FROM {} WHERE {} ORDER BY ALL"
        assert trace.rows(chunks.format("call_request", "did = 'chunk'")) == trace.rows(
            chunks.format("step_request", "kind = 'prefill'")
        )
        extended = "SELECT request, count(*) AS n FROM {} WHERE {} GROUP BY ALL ORDER BY ALL"
        assert trace.rows(extended.format("call_request", "did = 'extended'")) == trace.rows(
            extended.format("event", "kind = 'extended'")
        )
        for kind in ("preempted", "aborted"):
            query = f"SELECT count(*) FROM call_request WHERE did = '{kind}'"
            assert count(trace, query) == count(trace, f"SELECT count(*) FROM event WHERE kind = '{kind}'")


def test_a_call_counts_the_tokens_that_the_engine_has(stand: Stand) -> None:
    """The stand-in is in lockstep: a call has seen all forwards before its own."""
    stand, done = stand.recorded()
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        unseen = trace.rows(
            "SELECT num_unseen_steps AS n, count(*) FROM call_lag WHERE n IS NOT NULL GROUP BY ALL ORDER BY ALL"
        )
        assert [row["n"] for row in unseen] == [0]


def test_steps_belong_to_the_calls_whose_figures_they_have(stand: Stand) -> None:
    stand, done = stand.recorded("--blocks", "60", "--aborts", "--skips")
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        recording = trace.recording()
        order = recording.details.order
        assert order is not None
        by_call = steps_by_call(order, recording)
        figures = {row["call"]: row for row in trace.rows("FROM call")}
        steps = iter(trace.rows("FROM step ORDER BY step"))
        for call, num_steps in by_call.items():
            for _ in range(num_steps):
                step = next(steps)
                for name in ("num_running", "num_waiting", "num_free_blocks"):
                    assert step[name] == figures[call][name], (call, step["step"], name)
        assert next(steps, None) is None


def test_a_trace_whose_order_is_lost_has_none(stand: Stand) -> None:
    stand, done = stand.recorded()
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        assert trace.recording().details.order is not None
        details = [json.loads(row["detail"]) for row in trace.rows("FROM event WHERE kind = 'found'")]
        assert [detail["place"] for detail in details] == ["reserve"]


def test_each_data_parallel_rank_has_its_own_order(stand: Stand) -> None:
    stand, done = stand.recorded("--dp", "2", "--blocks", "60")
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        for engine in trace.rows("FROM engine"):
            order = trace.recording(engine["engine_id"]).details.order
            assert order is not None
            assert (order.changes["kind"] == "queued").any()
            query = (
                "SELECT DISTINCT split_part(request_id, '-', 1) AS rank FROM call_request k "
                f"JOIN request r USING (engine_id, request) WHERE k.engine_id = {engine['engine_id']}"
            )
            assert trace.rows(query) == [{"rank": f"d{engine['dp_rank']}"}]


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_in_the_roles_a_request_gets_its_blocks_before_it_joins(stand: Stand, role: str) -> None:
    stand, done = stand.recorded("--inline", "--role", role)
    assert done.returncode == 0, done.stderr
    kinds = "('preallocated', 'joined', 'discarded', 'left', 'freed')"
    with open_trace(stand.trace) as trace:
        assert trace.recording().details.order is not None
        found: dict[int, list[str]] = {}
        for row in trace.rows(f"FROM event WHERE call IS NOT NULL AND kind IN {kinds} ORDER BY call, ts"):
            found.setdefault(row["request"], []).append(row["kind"])
    assert {tuple(each[:2]) for each in found.values()} == {
        ("preallocated", "joined"),
        ("preallocated", "discarded"),
    }
