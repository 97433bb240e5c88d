"""A collector that is too slow: what was overwritten stands in the trace with its extent, and nothing else is wrong."""

from __future__ import annotations

import json
import os
import signal
import time
from array import array
from pathlib import Path
from typing import Any

import pytest

from fdtrace.recorder.agent import ring, wire
from fdtrace.recorder.agent.writer import Writer
from fdtrace.recorder.collector.process import Collector
from fdtrace.recorder.session import Session
from tests.recorder.helpers import (
    armed_environment,
    collected,
    finish,
    logged,
    num_logged,
    query,
    recorded,
    start_engine,
    stop_engine,
)


def test_overwritten_steps_are_reported_exactly(tmp_path: Path) -> None:
    trace, log = tmp_path / "t.duckdb", tmp_path / "log"
    with collected(trace, ring_mib=2) as (session, supervisor):
        engine = start_engine("--log", log, "--seqs", 256, env=armed_environment(session))
        while num_logged(log) < 50:
            supervisor.poll(0.02)
        os.kill(supervisor.process.pid, signal.SIGSTOP)
        behind = num_logged(log)
        while num_logged(log) < behind + 3000:
            time.sleep(0.05)
        os.kill(supervisor.process.pid, signal.SIGCONT)
        seen = num_logged(log)
        while num_logged(log) < seen + 50:
            supervisor.poll(0.02)
        stop_engine(engine)
        finish(supervisor)
    whole, found = logged(log), recorded(trace)
    lost = [
        json.loads(row[0])
        for row in query(trace, "SELECT detail FROM event WHERE kind = 'lost' ORDER BY step")
    ]
    assert lost
    missing = [step for one in lost for step in range(one["first_step"], one["last_step"] + 1)]
    assert len(missing) > 1000
    assert sorted([*found, *missing]) == sorted(whole)
    assert {step: whole[step] for step in found} == found


@pytest.mark.parametrize(
    "told", [{}, {"part": "engine", "token": 1, "ts": 1}], ids=["alone", "one of several"]
)
def test_what_was_lost_before_anything_was_read_is_named_exactly(
    told: dict[str, Any], tmp_path: Path
) -> None:
    """The first frames of a recording that began at the engine's step 500. Processes of several number their own steps
    as they like, and the trace numbers the engine's from 0.
    """
    first, size = 500, 1 << 18
    session = Session.create(tmp_path / "t.duckdb")
    page = ring.create(f"{session.dir}/1-1.ring", wire.PROTOCOL, time.time_ns(), 4, size)
    writer = Writer(page, 4, size, lambda: {"name": "scripted", **told}, list)
    tokens = memoryview(array("i", [2] * 100))
    step = first
    while writer.ring.lap < 9:
        writer.boundary()
        writer.forward(step, step, time.time_ns(), 9, -1, (1, 2, 3, 4), b"", b"", tokens, tokens)
        step += 1
    collector = Collector(session)
    collector.discover()
    collector.finish("exit")
    trace = Path(session.output)
    base = 0 if told else first
    found = {row[0] for row in query(trace, "SELECT step FROM step")}
    ((text,),) = query(trace, "SELECT detail FROM event WHERE kind = 'lost'")
    lost = json.loads(text)
    assert lost["first_step"] == base
    assert lost["frames"] > 100
    gap = set(range(lost["first_step"], lost["last_step"] + 1))
    assert found | gap == set(range(base, base + step - first))
    assert not found & gap
