"""Kept traces of a flight recorder of transformers: each begins with a checkpoint, and replays as it ran from there.

`make test-transformers` runs it.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from fdtrace.recorder.session import Session
from fdtrace.recorder.trace.trace import open_trace
from fdtrace.replayer.experiment import Experiment
from fdtrace.scheduler_option import given_schedulers
from tests.flown import ENOUGH, fly
from tests.recorder.helpers import query
from tests.stands import armed_for
from tests.trace_contract import broken
from tests.transformers_cb.engine import FEW_BLOCKS, OFFLOAD, PREFIXES, PYTHON, Engine

pytestmark = [
    pytest.mark.skipif(not PYTHON, reason="TRANSFORMERS_PYTHON names no Python that has transformers"),
    pytest.mark.xdist_group("transformers"),
]


@pytest.mark.parametrize(
    "options",
    [(*FEW_BLOCKS, *OFFLOAD, "--asynchronous"), (*PREFIXES, "--blocks", "32", "--cancel", "0.1")],
    ids=" ".join,
)
def test_each_kept_trace_replays_as_it_ran(tmp_path: Path, options: tuple[str, ...]) -> None:
    engine = Engine(tmp_path)

    def start(session: Session) -> subprocess.Popen[str]:
        command = engine.command("--requests", "100000", "--seconds", "600", *options)
        armed = armed_for(session, engine.environment)
        return subprocess.Popen(command, env=armed, stdout=subprocess.DEVNULL, text=True)

    _whole, *segments = fly(tmp_path / "flight", start)
    kept = [
        path for path in segments if query(path, "SELECT step FROM step LIMIT 1")
    ]  # the last may be empty
    assert len(kept) >= ENOUGH - 2
    (given,) = given_schedulers(["transformers"], PYTHON)
    waits = in_flight = cached = 0
    for path in kept[::2]:
        with open_trace(path) as trace:
            recording = trace.recording().loaded()
            assert broken(trace) == []
        details = [
            json.loads(text) for (text,) in query(path, "SELECT detail FROM event WHERE kind = 'found'")
        ]
        waits += any(detail.get("place") == "waiting" for detail in details)
        in_flight += any(detail.get("num_in_flight_tokens", 0) > 0 for detail in details)
        cached += any(detail.get("cached_blocks") for detail in details)
        experiment = Experiment(recording)
        with given.open(
            experiment.workload.config, recording.engine.env, recording.engine.config
        ) as scheduler:
            fidelity = experiment.reschedule(scheduler).outcome.fidelity
        assert fidelity is not None
        assert fidelity.num_steps > 0
        assert fidelity.num_equal == fidelity.num_steps, (path, fidelity.explanation)
    assert waits or "--prefixes" in options
    assert bool(in_flight) is ("--asynchronous" in options)
    assert not cached or "--prefixes" in options  # whether any block is cached at that moment is chance
