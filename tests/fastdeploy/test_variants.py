"""Recordings of the lab under changed settings are what the real FastDeploy decides with these: by the model, and
through the real code. FASTDEPLOY_SRC, LAB_DIR and FASTDEPLOY_PYTHON as in `test_lab.py`.

A replay knows what was recorded. So of a smaller K the lab is given the recorded acceptances cut to it, and no setting
is asked under which requests would decode more often than they did.
"""

from __future__ import annotations

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fdtrace.recorder.trace.recording import Recording
from fdtrace.recorder.trace.trace import open_trace
from fdtrace.replayer import ORIGINAL, POLICIES
from fdtrace.replayer.analysis.fidelity import recorded_formula
from fdtrace.replayer.experiment import Experiment
from fdtrace.replayer.formulas import BUILTIN
from fdtrace.replayer.history.history import History
from fdtrace.replayer.workload.engine_settings import read_settings
from fdtrace.replayer.workload.under_settings import ChangedSettings
from fdtrace.scheduler_option import given_schedulers
from tests.fastdeploy.conftest import Stand
from tests.fastdeploy.test_lab import CASES, LAB, PYTHON, SOURCE, decided

pytestmark = [
    pytest.mark.skipif(
        not (SOURCE and CASES), reason="FASTDEPLOY_SRC and LAB_DIR name no FastDeploy and no lab"
    ),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

RESERVE = "FD_RESERVE_OUTPUT_BLOCK_NUM_FOR_DECODE_WHEN_SCHEDULE_NEW_PREFILL"
WHOLE = {"FD_DISABLE_CHUNKED_PREFILL": 1, "max_num_batched_tokens": 8192}
CHANGES: list[tuple[str, dict[str, Any]]] = [
    *(("speculative", {"max_num_batched_tokens": n}) for n in (512, 2048)),
    *(("speculative", {"max_num_seqs": n}) for n in (16, 32, 100)),
    *(("speculative", {"num_blocks": n}) for n in (600, 1000)),
    *(("speculative", {"num_speculative_tokens": n}) for n in (0, 5)),
    *(("speculative", one) for one in (WHOLE, {"FD_ENC_DEC_BLOCK_NUM": 4}, {"FD_ENC_DEC_BLOCK_NUM": 1}, {RESERVE: 4})),
    *(("tight_blocks", {"max_num_batched_tokens": n}) for n in (256, 1024)),
    *(("tight_blocks", {"max_num_seqs": n}) for n in (4, 8)),
    *(("tight_blocks", one) for one in ({"num_speculative_tokens": 4}, {"FD_ENC_DEC_BLOCK_NUM": 1})),
    *(("no_speculation", {"max_num_batched_tokens": n}) for n in (512, 1024)),
    *(("no_speculation", {"max_num_seqs": n}) for n in (32, 64)),
    *(("no_speculation", {"num_blocks": n}) for n in (1000, 2000)),
    *(("no_speculation", one) for one in (WHOLE, {"FD_ENC_DEC_BLOCK_NUM": 3}, {RESERVE: 0})),
    *(("shared_prefix", {"max_num_batched_tokens": n}) for n in (512, 2048)),
    *(("shared_prefix", {"max_num_seqs": n}) for n in (8, 16)),
    *(("shared_prefix", one) for one in ({"num_blocks": 250}, {"prefix_caching": False})),
    ("shared_prefix", {"block_size": 128, "num_blocks": 200}),
    *(("whole_prefill", {"num_blocks": n}) for n in (800, 2000)),
    *(("whole_prefill", one) for one in ({"FD_DISABLE_CHUNKED_PREFILL": 0}, {"max_num_batched_tokens": 8192})),
    *(("aborts", one) for one in ({"max_num_seqs": 24}, {"num_blocks": 500})),
]  # fmt: skip
"""Case, and the settings that are other than the case's."""


def batch(case: dict[str, Any], directory: Path, environment: dict[str, str]) -> list[Any]:
    """What the real FastDeploy decides on a case."""
    path, out = directory / "changed.json", directory / "changed.jsonl"
    path.write_text(json.dumps(case))
    command = [PYTHON, str(LAB / "fastdeploy_lab.py"), "batch", str(path), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=800)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return [[sorted(line["rows"]), line["free_blocks"]] for line in lines if line["tokens"]]


@pytest.fixture
def lab(stand: Stand) -> Stand:
    stand.environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    stand.environment["FD_LOG_DIR"] = str(stand.directory / "fastdeploy")
    return stand


def recorded(name: str, lab: Stand) -> tuple[dict[str, Any], Recording]:
    """A case and its recording, made once."""
    case = json.loads((LAB / "cases" / f"{name}.json").read_text())
    case.update(worker="inline", spec_method="ngram")
    if name not in _recorded():
        path = lab.directory / "case.json"
        path.write_text(json.dumps(case))
        command = [
            PYTHON,
            str(LAB / "fastdeploy_lab.py"),
            "batch",
            str(path),
            str(lab.directory / "out.jsonl"),
        ]
        assert lab.fdtrace("record", "-o", str(lab.trace), "--", *command, timeout=900).returncode == 0
        with open_trace(lab.trace) as trace:
            _recorded()[name] = trace.recording().loaded()
    return case, _recorded()[name]


@cache
def _recorded() -> dict[str, Recording]:
    return {}


def changed_case(case: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    variables = {name: value for name, value in settings.items() if name.startswith("FD_")}
    sizes = {name: value for name, value in settings.items() if name not in variables}
    found = {**case, **sizes, "env": {**case.get("env", {}), **variables}}
    drafts = settings.get("num_speculative_tokens")
    if drafts is not None:
        found["requests"] = [
            {**request, "accepts": [min(n, drafts) for n in request["accepts"]]}
            for request in case["requests"]
        ]
    return found


def decisions(history: History) -> list[Any]:
    return [decided(history, at) for at in range(len(history.columns["step"]))]


@pytest.mark.parametrize(("name", "settings"), CHANGES, ids=lambda one: str(one).strip("{}").replace("'", ""))
def test_changed_settings_are_decided_as_by_the_lab(name: str, settings: dict[str, Any], lab: Stand) -> None:
    case, recording = recorded(name, lab)
    golden = batch(changed_case(case, settings), lab.directory, lab.environment)
    formula = BUILTIN[recorded_formula(recording) or "original"]
    policy = POLICIES["release_2_6"] if recording.steps["new_token_ratio"].max() >= 0 else ORIGINAL
    changed = ChangedSettings(read_settings(recording.engine, settings), "recorded")
    experiment = Experiment(recording, changed_settings=changed)
    assert decisions(experiment.reschedule(formula, policy)) == golden
    (given,) = given_schedulers([f"fastdeploy={SOURCE}"], PYTHON)
    engine = recording.engine
    with given.open(experiment.workload.config, engine.env, engine.config, changed=changed.values) as driven:
        assert decisions(experiment.reschedule(driven)) == golden
