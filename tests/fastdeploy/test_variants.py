"""Recordings of the lab under changed settings are what the real FastDeploy decides with these: by the model, and
through the real code. FASTDEPLOY_SRC, LAB_DIR and FASTDEPLOY_PYTHON as in `test_lab.py`.

A replay knows what was recorded. So the lab is given just that: the drafts that each recorded forward accepted, cut to
a smaller K (beyond the recorded forwards the lab, like a replay, repeats the last), and the aborts that happened.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fdtrace.drivers.children import DriverPool
from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import Recording
from fdtrace.recorder.trace.trace import open_trace
from fdtrace.replayer.analysis.fidelity import recorded_policy, recorded_under
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
DECODE_BLOCKS = "FD_ENC_DEC_BLOCK_NUM"
TOKENS, SEQS, BLOCKS, K = "max_num_batched_tokens", "max_num_seqs", "num_blocks", "num_speculative_tokens"


def changes_of(
    case: str, *more: dict[str, Any], **values: tuple[int, ...]
) -> list[tuple[str, dict[str, Any]]]:
    """One change for each value of each setting, and for each of `more`."""
    single = [{name: value} for name, each in values.items() for value in each]
    return [(case, settings) for settings in (*single, *more)]


CHANGES: list[tuple[str, dict[str, Any]]] = [
    *changes_of("speculative", WHOLE, **{TOKENS: (512, 2048), SEQS: (16, 32, 100), BLOCKS: (600, 1000)}),
    *changes_of("speculative", **{K: (0, 1, 2, 3, 5), DECODE_BLOCKS: (1, 4), RESERVE: (4,)}),
    *changes_of("tight_blocks", **{TOKENS: (256, 1024), SEQS: (4, 8, 16), BLOCKS: (100, 200), K: (1, 4)}),
    *changes_of("tight_blocks", **{DECODE_BLOCKS: (1, 4), RESERVE: (0, 4)}),
    *changes_of("no_speculation", WHOLE, **{TOKENS: (512, 1024), SEQS: (32, 64), BLOCKS: (1000, 2000)}),
    *changes_of("no_speculation", **{DECODE_BLOCKS: (3,), RESERVE: (0,)}),
    *changes_of("shared_prefix", {"block_size": 128, BLOCKS: 200}, {"prefix_caching": False}),
    *changes_of("shared_prefix", **{TOKENS: (512, 2048), SEQS: (8, 16), BLOCKS: (250,), K: (0, 3)}),
    *changes_of(
        "whole_prefill", **{BLOCKS: (800, 2000), "FD_DISABLE_CHUNKED_PREFILL": (0,), TOKENS: (8192,), K: (1,)}
    ),
    *changes_of("aborts", **{TOKENS: (512, 1536), SEQS: (24,), BLOCKS: (300, 500), K: (1,)}),
    *changes_of("preemptions", **{SEQS: (16,), BLOCKS: (140, 200), K: (1,), RESERVE: (0, 4)}),
    *changes_of("full_reservation", **{TOKENS: (128,), SEQS: (8,), K: (1,)}),
]
"""Case, and the settings that are other than the case's."""


class LabCases:
    """The real FastDeploy's decisions on cases, by `lab_cases.py`."""

    def __init__(self, directory: Path) -> None:
        environment = dict(os.environ, FD_LOG_DIR=str(directory / "fastdeploy"), LAB_DIR=str(LAB))
        self.log = (directory / "stderr").open("w+")
        self.process = subprocess.Popen(
            [PYTHON, str(Path(__file__).with_name("lab_cases.py"))], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
        )  # fmt: skip

    def decided(self, case: dict[str, Any], directory: Path) -> list[Any] | str:
        """For each forward of a case that ran tokens: its rows, and the free blocks. What it says, if it refuses."""
        path, out = directory / "changed.json", directory / "changed.jsonl"
        path.write_text(json.dumps(case))
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(path), str(out)]) + "\n")
        self.process.stdin.flush()
        ended = self.process.stdout.readline()
        if ended != "0\n":
            self.log.seek(0)
            return self.log.read()[-2000:]
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        return [[sorted(line["rows"]), line["free_blocks"]] for line in lines if line["tokens"]]

    def close(self) -> None:
        self.process.communicate()
        self.log.close()


@pytest.fixture(scope="module")
def lab_cases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabCases]:
    cases = LabCases(tmp_path_factory.mktemp("cases"))
    yield cases
    cases.close()


@pytest.fixture(scope="module")
def children() -> Iterator[DriverPool]:
    """Processes of the real scheduler, each for all tests with the same environment variables."""
    with DriverPool() as kept:
        yield kept


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


def changed_case(case: dict[str, Any], settings: dict[str, Any], recording: Recording) -> dict[str, Any]:
    """The case under changed settings, with what its recording knows of the requests."""
    variables = {name: value for name, value in settings.items() if name.startswith("FD_")}
    sizes = {name: value for name, value in settings.items() if name not in variables}
    found = {**case, **sizes, "env": {**case.get("env", {}), **variables}}
    drafts = int(settings.get(K, case.get(K, 0)))
    found["requests"] = [as_recorded(request, recording, drafts) for request in case["requests"]]
    return found


def as_recorded(request: dict[str, Any], recording: Recording, drafts: int) -> dict[str, Any]:
    """A request of a case as its recording knows it, for a forward of at most `drafts` drafts."""
    names, details = recording.requests["request_id"].tolist(), recording.details
    entry = names.index(request["id"])
    accepted = details.acceptance.num_accepted[details.acceptance.forwards(entry)].tolist()
    known = {**request, "accepts": [min(n, drafts) for n in accepted]}
    if details.endings.abort_step(entry) == MISSING:
        known.pop("abort_after", None)  # it ended before its client would have sent the abort
    return known


def decisions(history: History) -> list[Any]:
    return [decided(history, at) for at in range(len(history.columns["step"]))]


def parting(history: History, golden: list[Any], cut: bool) -> str:
    """Where a replay and the lab decide otherwise; empty: nowhere. `cut`: the lab ended at a limit of steps."""
    found = decisions(history)
    found = found[: len(golden)] if cut else found
    assert len(golden) > 20
    for index, (one, other) in enumerate(zip(found, golden, strict=False)):
        if one != other:
            return f"forward {index}: {one} in the replay, {other} in the lab"
    return "" if len(found) == len(golden) else f"{len(found)} forwards, {len(golden)} in the lab"


@pytest.mark.parametrize(("name", "settings"), CHANGES, ids=lambda one: str(one).strip("{}").replace("'", ""))
def test_changed_settings_are_decided_as_by_the_lab(
    name: str, settings: dict[str, Any], lab: Stand, lab_cases: LabCases, children: DriverPool
) -> None:
    case, recording = recorded(name, lab)
    golden = lab_cases.decided(changed_case(case, settings, recording), lab.directory)
    assert isinstance(golden, list), golden
    # Where there were drafts, no recording tells whether pr7499 or pr7623 made it.
    names = [name for name, formula in BUILTIN.items() if recorded_under(recording, formula)]
    changed, cut = ChangedSettings(read_settings(recording.engine, settings), "recorded"), "max_steps" in case
    experiment, policy = Experiment(recording, changed_settings=changed), recorded_policy(recording)
    partings = [parting(experiment.reschedule(BUILTIN[name], policy), golden, cut) for name in names]
    assert "" in partings, partings
    (given,) = given_schedulers([f"fastdeploy={SOURCE}"], PYTHON)
    config, engine = experiment.workload.config, recording.engine
    with given.open(config, engine.env, engine.config, changed=changed.values, children=children) as driven:
        assert parting(experiment.reschedule(driven), golden, cut) == ""


def test_settings_that_the_lab_refuses_are_refused(lab: Stand, lab_cases: LabCases) -> None:
    case, recording = recorded("speculative", lab)
    said = lab_cases.decided(changed_case(case, {BLOCKS: 400}, recording), lab.directory)
    assert "should be larger than or equal to 514" in said
    changed = ChangedSettings(read_settings(recording.engine, {BLOCKS: 400}), "recorded")
    with pytest.raises(UsageError, match="FastDeploy would not start"):
        Experiment(recording, changed_settings=changed).reschedule(BUILTIN["original"])
