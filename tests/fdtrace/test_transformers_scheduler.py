"""`--scheduler transformers`: recordings of a real engine through its own scheduler, every step as it was recorded.

`make test-transformers` runs it.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fdtrace.recorder.trace.trace import open_trace
from fdtrace.replayer.experiment import Experiment
from fdtrace.scheduler_option import given_schedulers
from tests.transformers_cb.engine import FROM_MIDDLE, FROM_START, PYTHON, Engine, attached, recorded

pytestmark = [
    pytest.mark.skipif(not PYTHON, reason="TRANSFORMERS_PYTHON names no Python that has transformers"),
    pytest.mark.xdist_group("transformers"),
]


def replay(engine: Engine, trace: Path, *options: str) -> subprocess.CompletedProcess[str]:
    given = ("--scheduler", "transformers", "--scheduler-python", PYTHON)
    command = engine.fdtrace("replay", trace, "--json", *given, *options)
    return subprocess.run(
        command, env=engine.environment, capture_output=True, text=True, check=False, timeout=600
    )


def formulas(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return {one["name"]: one for one in json.loads(done.stdout)["formulas"]}


@pytest.mark.parametrize("options", FROM_START, ids=" ".join)
def test_every_step_comes_out_as_it_was_recorded(
    tmp_path_factory: pytest.TempPathFactory, options: tuple[str, ...]
) -> None:
    """What it ran, and for what the head of the queue waited."""
    engine, _ = recorded(tmp_path_factory, options)
    with open_trace(engine.trace) as trace:
        recording = trace.recording().loaded()
        lines = (
            "SELECT coalesce(not_admitted, '') AS why, num_missing_blocks AS lacks FROM step ORDER BY step"
        )
        waited = [(row["why"], row["lacks"]) for row in trace.rows(lines)]
    experiment = Experiment(recording)
    (given,) = given_schedulers(["transformers"], PYTHON)
    with given.open(experiment.workload.config, recording.engine.env, recording.engine.config) as scheduler:
        history = experiment.reschedule(scheduler)
    fidelity = history.outcome.fidelity
    assert fidelity is not None
    assert fidelity.num_steps > 80
    assert fidelity.explanation == ""
    assert fidelity.num_equal == fidelity.num_steps
    lacks = [None if blocks < 0 else blocks for blocks in history.columns["num_missing_blocks"].tolist()]
    assert list(zip(history.columns["not_admitted"].tolist(), lacks, strict=True)) == waited


@pytest.mark.parametrize("options", FROM_MIDDLE, ids=" ".join)
def test_recordings_from_the_middle_begin_with_what_was_there(
    tmp_path_factory: pytest.TempPathFactory, options: tuple[str, ...]
) -> None:
    found = attached(tmp_path_factory, options)
    for trace in found.traces:
        fidelity = formulas(replay(found.engine, trace))["transformers"]["fidelity"]
        assert fidelity["num_steps"] >= 30
        # A token that was sampled at its end may give the replay one step more.
        assert fidelity["num_equal"] == fidelity["num_steps"], fidelity["explanation"]


def test_a_formula_is_the_budget_of_the_real_scheduler(tmp_path_factory: pytest.TempPathFactory) -> None:
    engine, _ = recorded(tmp_path_factory, ())
    done = replay(engine, engine.trace, "-f", "same: max_num_batched_tokens", "-f", "few: 6")
    found = formulas(done)
    assert found["same"]["peak_tokens"] == found["transformers"]["peak_tokens"] == 64
    assert found["same"]["num_steps"] == found["transformers"]["num_steps"]
    assert found["few"]["peak_tokens"] == 6
    assert found["few"]["num_steps"] > 2 * found["same"]["num_steps"]
    assert found["few"]["fidelity"] is None
    assert found["few"]["total_tokens"] == found["same"]["total_tokens"]


def test_another_engines_scheduler_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    engine, _ = recorded(tmp_path_factory, ())
    command = engine.fdtrace("replay", engine.trace, "--json", "--scheduler", "vllm")
    done = subprocess.run(command, env=engine.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot reschedule a recording of transformers" in done.stderr
    alone = subprocess.run(
        engine.fdtrace("replay", engine.trace, "--json", "-f", "pr7499"),
        env=engine.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert alone.returncode == 2
    assert "--scheduler transformers" in alone.stderr
