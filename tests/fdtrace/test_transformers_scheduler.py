"""`--scheduler transformers`: recordings of a real engine through its own scheduler, every step as it was recorded.

`make test-transformers` runs it.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.transformers_cb.engine import PYTHON, Engine, detach

pytestmark = [
    pytest.mark.skipif(not PYTHON, reason="TRANSFORMERS_PYTHON names no Python that has transformers"),
    pytest.mark.xdist_group("transformers"),
]

RECORDED = {
    "plain": (),
    "prefill first": ("--scheduler", "prefill_first"),
    "few slots": ("--seqs", "4"),
    "prefix sharing": ("--prefixes", "3", "--shared", "48"),
    "prefix sharing, few blocks": ("--prefixes", "3", "--shared", "48", "--blocks", "32"),
    "resets": ("--blocks", "24"),
    "offloading": ("--blocks", "24", "--offload-gib", "0.01"),
    "cancelled": ("--cancel", "0.3"),
    "asynchronous": ("--asynchronous",),
}


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path)


def replay(engine: Engine, trace: Path, *options: str) -> subprocess.CompletedProcess[str]:
    given = ("--scheduler", "transformers", "--scheduler-python", PYTHON)
    command = engine.fdtrace("replay", trace, "--json", *given, *options)
    return subprocess.run(
        command, env=engine.environment, capture_output=True, text=True, check=False, timeout=600
    )


def formulas(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return {one["name"]: one for one in json.loads(done.stdout)["formulas"]}


@pytest.mark.parametrize("name", RECORDED)
def test_every_step_comes_out_as_it_was_recorded(engine: Engine, name: str) -> None:
    engine.record(*RECORDED[name])
    found = formulas(replay(engine, engine.trace))["transformers"]["fidelity"]
    assert found["num_steps"] > 80
    assert found["explanation"] == ""
    assert found["num_equal"] == found["num_steps"]


def test_recordings_from_the_middle_are_taken_up_with_what_ran(engine: Engine) -> None:
    traces = [engine.directory / f"{number}.duckdb" for number in range(5)]
    with engine.served("--requests", "100000", "--seconds", "600") as process:
        while not engine.log.exists() or len(engine.log.read_text().splitlines()) < 50:
            time.sleep(0.05)
        for trace in traces:
            recording = engine.attach(process.pid, trace)
            time.sleep(0.7)
            detach(recording)
    for trace in traces:
        found = formulas(replay(engine, trace))["transformers"]["fidelity"]
        assert found["num_steps"] > 20
        assert found["num_equal"] == found["num_steps"]


def test_a_formula_is_the_budget_of_the_real_scheduler(engine: Engine) -> None:
    engine.record()
    done = replay(engine, engine.trace, "-f", "same: max_num_batched_tokens", "-f", "few: 6")
    found = formulas(done)
    assert found["same"]["peak_tokens"] == found["transformers"]["peak_tokens"] == 64
    assert found["same"]["num_steps"] == found["transformers"]["num_steps"]
    assert found["few"]["peak_tokens"] == 6
    assert found["few"]["num_steps"] > 2 * found["same"]["num_steps"]
    assert found["few"]["fidelity"] is None
    assert found["few"]["total_tokens"] == found["same"]["total_tokens"]


def test_another_engines_scheduler_is_refused(engine: Engine, tmp_path: Path) -> None:
    engine.record("--requests", "6")
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
