"""A collector that is too slow: what was overwritten stands in the trace with its extent, and nothing else is wrong."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

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
