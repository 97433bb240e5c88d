"""SIGKILL at random moments, for the engine and for the collector: every committed step is in the trace once.

An engine's log line is written after its step returned, so a step that is in the log was committed to the ring.
FDTRACE_TEST_KILLS says how many moments of each (default 8).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from fdtrace.recorder.collector.process import Collector, recover
from fdtrace.recorder.session import Session
from fdtrace.recorder.supervise import Supervisor
from fdtrace.recorder.trace_paths import parts_directory
from tests.recorder.helpers import (
    armed_environment,
    collected,
    finish,
    logged,
    num_logged,
    pump,
    query,
    recorded,
    start_engine,
    stop_engine,
)

KILLS = int(os.environ.get("FDTRACE_TEST_KILLS", "8"))


def passed(until: float) -> bool:
    return time.monotonic() >= until


def restarted(supervisor: Supervisor, times: int) -> bool:
    return supervisor.restarts == times


def test_engines_killed_at_random_moments_lose_no_committed_step(tmp_path: Path) -> None:
    trace, rng = tmp_path / "t.duckdb", random.Random(1)
    logs = {}
    with collected(trace) as (session, supervisor):
        for i in range(KILLS):
            log = tmp_path / f"log{i}"
            engine = start_engine(
                "--log", log, "--seqs", rng.choice([2, 16, 64]), env=armed_environment(session)
            )
            until = time.monotonic() + rng.uniform(0.001, 0.12)
            pump(supervisor, partial(passed, until))
            engine.kill()
            engine.wait()
            logs[engine.pid] = log
        finish(supervisor, "exit 0")
    engines = dict(query(trace, "SELECT pid, engine_id FROM engine"))
    for pid, log in logs.items():
        committed = logged(log)
        if not committed:
            continue
        found = recorded(trace, engines[pid])
        assert {step: found[step] for step in committed} == committed
        assert set(found) - set(committed) <= {len(committed)}, "more than the step in progress"
    assert sum(len(logged(log)) for log in logs.values()) > 20 * KILLS
    assert query(trace, "SELECT * FROM event WHERE kind = 'lost'") == []


@pytest.mark.slow
def test_a_collector_killed_at_random_moments_neither_loses_nor_doubles_a_step(tmp_path: Path) -> None:
    trace, log, rng = tmp_path / "t.duckdb", tmp_path / "log", random.Random(2)
    with collected(trace) as (session, supervisor):
        engine = start_engine("--log", log, "--sleep", 0.002, env=armed_environment(session))
        for kills in range(KILLS):
            pump(supervisor, partial(restarted, supervisor, kills))
            until = time.monotonic() + rng.uniform(0.0, 1.6)
            pump(supervisor, partial(passed, until))
            supervisor.process.kill()
        killed = supervisor.restarts
        stop_engine(engine)
        finish(supervisor)
    assert killed >= KILLS - 1
    assert recorded(trace) == logged(log)
    arrived = query(
        trace, "SELECT request, count(*) FROM event WHERE kind = 'arrived' GROUP BY ALL HAVING count(*) > 1"
    )
    assert arrived == []
    assert query(trace, "SELECT count(*), count(DISTINCT request) FROM request")[0][0] > 100
    assert query(trace, "SELECT request FROM request GROUP BY ALL HAVING count(*) > 1") == []


def test_an_order_that_a_killed_collector_has_not_read_is_given_to_the_next_one(tmp_path: Path) -> None:
    trace, log = tmp_path / "t.duckdb", tmp_path / "log"
    with collected(trace) as (session, supervisor):
        start_engine("--log", log, "--steps", 80, env=armed_environment(session)).communicate(timeout=900)
        supervisor.process.kill()
        supervisor.process.wait()
        finish(supervisor, "exit 0")
        assert supervisor.restarts == 1
    assert recorded(trace) == logged(log)


def test_engine_and_collector_both_killed_leave_what_recover_makes_whole(tmp_path: Path) -> None:
    trace, log = tmp_path / "t.duckdb", tmp_path / "log"
    session = Session.create(trace)
    engine = start_engine("--log", log, "--sleep", 0.001, env=armed_environment(session))
    command = [sys.executable, "-m", "fdtrace.recorder.collector", str(session.path)]
    collector = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    while not trace.exists() or num_logged(log) < 300:
        time.sleep(0.02)
    time.sleep(1.3)
    collector.kill()
    collector.wait()
    engine.kill()
    engine.wait()
    assert query(trace, "SELECT state FROM trace") == [("recording",)]
    steps = recover(Session.load(session.path))
    committed, found = logged(log), recorded(trace)
    assert {step: found[step] for step in committed} == committed
    assert steps == len(found) <= len(committed) + 1
    assert query(trace, "SELECT state, ended_by FROM trace") == [("recovered", "cut off")]
    assert not parts_directory(trace).exists()
    assert not Path(session.dir).exists()


def test_a_collector_killed_once_the_final_file_is_in_place_only_cleans_up_when_started_again(
    tmp_path: Path,
) -> None:
    trace, log = tmp_path / "t.duckdb", tmp_path / "log"
    session = Session.create(trace)
    start_engine("--log", log, "--steps", 80, env=armed_environment(session)).communicate(timeout=900)
    collector = Collector(session)
    collector.clean_up = lambda: None  # type: ignore[method-assign]  # as if killed here
    collector.discover()
    collector.finish("exit 0")
    collector.lock.release()
    whole = trace.read_bytes()
    supervisor = Supervisor(session)
    pump(supervisor, lambda: supervisor.finished is not None)
    assert supervisor.finished is not None
    assert supervisor.finished["steps"] == 80
    assert trace.read_bytes() == whole
    assert recorded(trace) == logged(log)
    assert not parts_directory(trace).exists()
