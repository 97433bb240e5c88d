"""Attaching to a running engine of several processes, out again, and in again."""

from __future__ import annotations

import bisect
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fdtrace.recorder import agent_processes, attach_server
from fdtrace.recorder.inject import run_in_process
from fdtrace.recorder.session import Session
from fdtrace.recorder.supervise import Supervisor
from fdtrace.recorder.trace.trace import Trace, open_trace
from tests.fastdeploy.conftest import Stand, logged_rows
from tests.fastdeploy.test_contract import count, finished
from tests.recorder.helpers import finish, num_logged
from tests.stands import ROOT, rows_of

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    tomllib = pytest.importorskip("tomli")

CLASSES = {
    "fastdeploy.engine.sched.resource_manager_v1": "ResourceManagerV1",
    "fastdeploy.worker.gpu_model_runner": "GPUModelRunner",
}


def wrapped_methods(pid: int) -> list[str]:
    """Which methods of the engine's classes a process has wrapped, and whether the scheduler's lock has a stand-in."""
    source = (
        f"import gc, sys\nresult = []\nfor module, name in {CLASSES!r}.items():\n"
        "    owner = getattr(sys.modules.get(module), name, None)\n"
        "    methods = vars(owner).items() if owner else ()\n"
        "    result += [key for key, value in methods if hasattr(value, '_fdtrace_hook')]\n"
        "    for thing in gc.get_objects():\n"
        "        lock = getattr(thing, 'lock', None) if owner is not None and type(thing) is owner else None\n"
        "        if type(lock).__name__ == 'StandIn':\n"
        "            result.append('lock')\n"
    )
    value: list[str] = run_in_process(pid, source).value
    return value


@pytest.fixture
def running(stand: Stand, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    blocks = getattr(request, "param", "150")
    command = stand.command(
        "--ranks", "2", "--seconds", "300", "--sleep", "0.004", "--blocks", blocks, "--aborts"
    )
    process = subprocess.Popen(command, env=stand.environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ready")
    yield process
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.wait()


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def recorded_part(trace: Trace, lines: list[dict[str, Any]]) -> list[Any]:
    """The worker's own lines of the forwards that a trace holds: each is written when its forward has ended."""
    first, last = trace.rows("SELECT min(epoch_ns(ts)) AS first, max(epoch_ns(ts)) AS last FROM step")[
        0
    ].values()
    times = [line["ts"] for line in lines]
    return logged_rows(lines[bisect.bisect_left(times, first) : bisect.bisect_left(times, last) + 1])


@pytest.mark.slow
def test_attach_detach_and_attach_again(stand: Stand, running: subprocess.Popen[str]) -> None:
    pids = [running.pid, *children(running.pid)]
    for attempt in range(2):
        path = stand.directory / f"{attempt}.duckdb"
        done = stand.fdtrace("attach", str(running.pid), "-o", str(path), "--duration", "2")
        assert done.returncode == 0, done.stderr
        assert [wrapped_methods(pid) for pid in pids] == [[], [], []], done.stderr
        with open_trace(path) as trace:
            expected, found = recorded_part(trace, stand.lines()), rows_of(trace)
            assert len(found) > 10
            assert [sum(row[2] for row in rows) for rows in found] == [
                sum(row[2] for row in rows) for rows in expected
            ]
            # What a request had computed when recording began is the engine's view: it may lack the last forward.
            assert [_without_computed(rows) for rows in found] == [
                _without_computed(rows) for rows in expected
            ]
            assert count(trace, "SELECT count(*) FROM engine") == 1
            ranks = count(trace, "SELECT count(*) FROM rank_memory")
            assert len(found) - 60 <= ranks <= len(found)
    running.terminate()
    output, _ = running.communicate(timeout=900)
    assert running.returncode == 0
    own = finished(output)
    assert own["finished"] <= own["made"]


@pytest.mark.parametrize("running", ["60"], indirect=True)
def test_a_rank_that_is_recorded_longer_than_the_others_tells_no_step_twice(
    stand: Stand, running: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preempted request keeps the time of the call that preempted it, also when it runs again."""
    monkeypatch.setenv("FDTRACE_DIR", stand.environment["FDTRACE_DIR"])
    session = Session.create(stand.trace)
    attach_server.attach(running.pid, session)
    supervisor = Supervisor(session)
    try:
        waited_for(stand, 50)
        running.send_signal(signal.SIGSTOP)  # both obey in its next step
        for pid in (running.pid, children(running.pid)[0]):
            agent = agent_processes.find_agent(pid)
            assert agent is not None
            agent_processes.command(agent, {"op": "stop", "reason": "detach"}, wait=0)
        running.send_signal(signal.SIGCONT)
        waited_for(stand, 50)
        attach_server.detach(session.id)
        finish(supervisor)
    finally:
        session.remove_rings()
    with open_trace(stand.trace) as trace:
        assert count(trace, "SELECT count(*) FROM rank_memory") > 0
        twice = "SELECT step FROM rank_memory GROUP BY engine_id, step, rank HAVING count(*) > 1"
        assert trace.rows(twice) == []


def waited_for(stand: Stand, forwards: int) -> None:
    """Returns when the worker has run so many more."""
    goal = num_logged(stand.log_of()) + forwards
    deadline = time.monotonic() + 900
    while num_logged(stand.log_of()) < goal:
        assert time.monotonic() < deadline, "the worker stands still"
        time.sleep(0.02)


def _without_computed(rows: list[Any]) -> list[Any]:
    return [[row[0], row[1], row[2], row[4]] for row in rows]


def test_only_part_of_the_engine_can_be_recorded_alone(stand: Stand, running: subprocess.Popen[str]) -> None:
    worker = children(running.pid)[0]
    done = stand.fdtrace("attach", str(worker), "-o", str(stand.trace), "--duration", "2")
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        steps = trace.rows("FROM step ORDER BY step")
        expected = recorded_part(trace, stand.lines())
        assert [step["num_tokens"] for step in steps] == [sum(row[2] for row in rows) for rows in expected]
        assert {step["token_budget"] for step in steps} == {None}
        engine = trace.engines()[0]
        assert json.loads(engine["env"]) is not None
        assert engine["max_num_batched_tokens"] == 64


def test_fastdeploys_own_entry_points_arm_an_engine_and_its_worker(stand: Stand) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name in ("token_processor", "model_runner"):
        declared = project["entry-points"][f"fastdeploy.{name}_plugins"]
        assert declared == {"fdtrace": f"fdtrace.recorder.agent.fastdeploy_plugins:{name}"}
    command = stand.command("--plugins", "--seconds", "300", "--sleep", "0.004")
    process = subprocess.Popen(command, env=stand.environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        done = stand.fdtrace("attach", str(process.pid), "-o", str(stand.trace), "--duration", "2")
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("attached (armed)") == 2
        with open_trace(stand.trace) as trace:
            found, expected = rows_of(trace), recorded_part(trace, stand.lines())
            assert [_without_computed(rows) for rows in found] == [
                _without_computed(rows) for rows in expected
            ]
    finally:
        process.kill()
        process.communicate()
