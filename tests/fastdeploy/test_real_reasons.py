"""Why the real FastDeploy admitted no more: its own code under `--scheduler` says what the recording of it says."""

from __future__ import annotations

import json

import pytest

from fdtrace.recorder.trace.trace import open_trace
from fdtrace.replayer.experiment import Experiment
from fdtrace.scheduler_option import given_schedulers
from tests.fastdeploy.conftest import Stand
from tests.fastdeploy.test_lab import LAB, PYTHON, SOURCE, lab, pytestmark, recorded_inline

__all__ = ["lab", "pytestmark"]

REASONS = {
    "preemptions": {"blocks", "budget", "slots", "preemption", ""},
    "whole_prefill": {"budget", ""},
    "full_reservation": {"budget", "slots", ""},
}


@pytest.mark.parametrize("name", REASONS)
def test_the_head_of_the_queue_waits_for_what_it_waited_for(lab: Stand, name: str) -> None:
    path, _ = recorded_inline(lab, name)
    with open_trace(path) as trace:
        recording = trace.recording()
        experiment, engine = Experiment(recording), recording.engine
        lines = (
            "SELECT coalesce(not_admitted, '') AS why, num_missing_blocks AS lacks FROM step ORDER BY step"
        )
        waited = [(row["why"], row["lacks"]) for row in trace.rows(lines)]
        (given,) = given_schedulers([f"fastdeploy={SOURCE}"], PYTHON)
        with given.open(experiment.workload.config, engine.env, engine.config) as scheduler:
            columns = experiment.reschedule(scheduler).columns
    assert {why for why, _ in waited} <= REASONS[name]
    lacks = [None if blocks < 0 else blocks for blocks in columns["num_missing_blocks"].tolist()]
    assert list(zip(columns["not_admitted"].tolist(), lacks, strict=True)) == waited


def test_what_simulate_writes_says_it_too(lab: Stand) -> None:
    out = lab.directory / "simulated.jsonl"
    options = ["--scheduler", f"fastdeploy={SOURCE}", "--scheduler-python", PYTHON, "--decisions", str(out)]
    done = lab.fdtrace("simulate", LAB / "cases" / "preemptions.json", *options)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {line["not_admitted"] for line in lines} > {"blocks", "slots", "preemption"}
    assert all((line["not_admitted"] is None) == (not line["waiting"]) for line in lines)
