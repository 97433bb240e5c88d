"""Recordings of vLLM without vLLM: what is refused, what is read as recorded, whose a cached block was."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

import duckdb
import numpy as np
import pytest

from fdtrace.cli import main
from fdtrace.drivers.child import DriverProcess
from fdtrace.drivers.vllm_scheduler import DrivenVllm
from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.digest import digests_of
from fdtrace.recorder.trace.read_tables import restarts
from fdtrace.recorder.trace.recording import EngineInfo, LoadedDetails, Recording, RowScan, StepDigests
from fdtrace.recorder.trace.trace import open_trace
from fdtrace.replayer.analysis.divergence import COMPARED
from fdtrace.replayer.analysis.fidelity import fidelity_of
from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.workload.block_contents import Blocks, Prefixes
from fdtrace.scheduler_option import DRIVERS

Captured = pytest.CaptureFixture[str]


def test_a_recording_that_has_changed_is_told() -> None:
    """The digests of a replay are compared where the figures of a step are equal."""
    recording = Recording(
        EngineInfo(0, "vllm", "0", 64, 8, 4, 16, 60, 1024),
        {"step": np.arange(3), "num_tokens": np.array([5, 5, 5])},
        {"request": np.arange(1), "request_id": np.array(["a"], dtype=object)},
        (),
        replace(
            LoadedDetails.unknown(1),
            scan=RowScan(digests=StepDigests(np.array([0, 2]), np.array([7, 9]), np.array([5, 5]))),
        ),
    )
    columns = {name: np.full(3, MISSING) for name in COMPARED} | {"num_tokens": np.array([5, 5, 5])}
    found = fidelity_of(recording, {**columns, "step": np.arange(3)}, digests=np.array([7, 8, 8]))
    assert (found.num_equal, found.first_divergence) == (2, 2)
    assert "the figures of the whole step are equal" in found.explanation


@pytest.fixture(scope="module")
def vllm_trace(trace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of an engine that calls itself vLLM."""
    path = tmp_path_factory.mktemp("vllm") / "t.duckdb"
    shutil.copy(trace, path)
    with duckdb.connect(str(path)) as db:
        db.execute("UPDATE engine SET name = 'vllm'")
    return path


def test_without_a_formula_it_opens_as_recorded(vllm_trace: Path, capsys: Captured) -> None:
    assert main(["replay", str(vllm_trace), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["formulas"]
    assert {one["how"] for one in found[1:]} == {"as recorded"}
    assert len(found) > 1


def test_an_expression_asks_its_steps_as_recorded(vllm_trace: Path, capsys: Captured) -> None:
    text = "mine: max_num_batched_tokens - num_running_decodes - num_waiting"
    assert main(["replay", str(vllm_trace), "--json", "--as-recorded", "-f", text]) == 0
    assert json.loads(capsys.readouterr().out)["formulas"][1]["name"] == "mine"
    assert main(["check", str(vllm_trace), "--as-recorded", "-f", "exact", "--max-exceeded", "1000"]) == 0


REFUSED = {
    "pr7499 cannot reschedule a recording of vllm": ["-f", "pr7499"],
    "mine cannot reschedule": ["-f", "mine: max_num_seqs"],
    "original cannot reschedule": ["--clock", "time"],
    "release_2_6": ["--policy", "release_2_6", "--scheduler", "vllm"],
}


@pytest.mark.parametrize("said", REFUSED)
@pytest.mark.parametrize("command", ["replay", "check"])
def test_rules_of_another_engine_are_refused(
    command: str, said: str, vllm_trace: Path, capsys: Captured
) -> None:
    arguments = REFUSED[said]
    if command == "check" and not {"-f", "--scheduler"} & set(arguments):
        arguments = [*arguments, "-f", "original"]
    assert main([command, str(vllm_trace), *arguments]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "--as-recorded" in told
    assert "--scheduler vllm" in told


def test_a_scheduler_is_driven_through_recordings_of_its_own_engine(
    trace: Path, vllm_trace: Path, tmp_path: Path, capsys: Captured
) -> None:
    file = tmp_path / "fastdeploy" / "engine" / "sched" / "resource_manager_v1.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    assert main(["replay", str(vllm_trace), "--json", "--scheduler", f"fastdeploy={tmp_path}"]) == 2
    assert "cannot reschedule a recording of vllm" in capsys.readouterr().err
    assert main(["replay", str(trace), "--json", "--scheduler", "vllm"]) == 2
    assert "--scheduler vllm cannot reschedule a recording of" in capsys.readouterr().err


def test_a_python_without_vllm(vllm_trace: Path, tmp_path: Path, capsys: Captured) -> None:
    scheduler = tmp_path / DRIVERS["vllm"]
    scheduler.parent.mkdir(parents=True)
    scheduler.write_text("import nosuchmodule")
    assert main(["replay", str(vllm_trace), "--json", "--scheduler", f"vllm={tmp_path}"]) == 3
    told = capsys.readouterr().err
    assert "No module named 'nosuchmodule'" in told
    assert "--scheduler-python" in told
    assert main(["replay", str(vllm_trace), "--json", "--scheduler", "vllm=/"]) == 2
    assert f"it has no {DRIVERS['vllm']}" in capsys.readouterr().err


def test_an_engine_that_gets_blocks_from_elsewhere_is_not_driven() -> None:
    config = SchedulerConfig(64, 8, 60, 16)
    with pytest.raises(UsageError, match="from elsewhere"):
        DrivenVllm(cast(DriverProcess, None), config, "vllm", {"kv_transfer_config": {"kv_role": "kv_both"}})


def test_a_trace_tells_what_each_step_ran(trace: Path) -> None:
    """By SQL as by numpy; and drafts and hashes beside the acceptances."""
    with open_trace(trace) as opened:
        recording = opened.recording()
        rows = opened.rows(
            "SELECT step, request, num_tokens, coalesce(num_draft_tokens, 0) AS d FROM step_request"
        )
        digests = recording.step_digests()
        assert digests is not None
        at = np.searchsorted(recording.steps["step"], [row["step"] for row in rows])
        parts = [np.array([row[name] for row in rows], np.int64) for name in ("request", "num_tokens", "d")]
        found = digests_of(at, (parts[0], parts[1], parts[2]), recording.num_steps)
        known = digests != MISSING
        assert known.any()
        assert (found == digests)[known].all()
        acceptance = recording.details.acceptance
        assert acceptance.num_verified is not None
        assert len(acceptance.num_verified) == len(acceptance.num_accepted)
        assert recording.details.row_scan.restarts == {}


PREFILL, DECODE = False, True


def test_drafts_that_a_preemption_cost_are_counted() -> None:
    rows = [
        (PREFILL, 0, 10, 0),
        (DECODE, 11, 16, 2),
        (PREFILL, 0, 8, 0),
        (PREFILL, 8, 14, 0),
        (DECODE, 15, 16, 0),
    ]
    assert list(restarts(10, rows)) == [1]
    assert list(restarts(10, [(PREFILL, 0, 6, 0), (PREFILL, 0, 10, 0), (DECODE, 11, 12, 0)])) == []
    assert list(restarts(10, [(PREFILL, 0, 10, 0), (PREFILL, 0, 11, 0), (DECODE, 12, 13, 0)])) == [0]


def test_the_owner_of_a_block_is_told_by_the_block_before_it() -> None:
    first = Blocks(0, [11], num_found=0, num_filled=3, begins=0, ends=5)
    later = Blocks(1, [11, 12, 13], num_found=2, num_filled=3, begins=7, ends=None)
    found = Prefixes()
    found.feed([first, later])
    assert [found.key(0, i) for i in range(3)] == [11, 12, (0, 2)]
    assert found.cached == []


def test_a_block_that_nobody_made_was_there_before() -> None:
    cut_off = Blocks(0, [21], num_found=0, num_filled=0, begins=0, ends=1)
    one = Blocks(1, [21, 22], num_found=2, num_filled=2, begins=4, ends=None)
    other = Blocks(2, [21, 22, 23], num_found=2, num_filled=3, begins=5, ends=None)
    found = Prefixes()
    found.feed([cut_off, one, other])
    assert found.cached == [[21, 22]]
