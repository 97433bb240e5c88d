"""`--scheduler vllm`: vLLM's own scheduler, where VLLM_PYTHON names a Python that has vLLM; what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, cast

import duckdb
import numpy as np
import pytest

import fdtrace.drivers
from fdtrace.cli import main
from fdtrace.drivers.child import Child
from fdtrace.drivers.vllm_scheduler import DrivenVllm
from fdtrace.replays import RecordedRows
from fdtrace.schedulers import DRIVERS, given_schedulers
from recorder import schema
from recorder.digest import digests_of
from recorder.errors import UsageError
from recorder.loading import restarts
from recorder.recording import MISSING, EngineInfo, Recording
from recorder.trace import open_trace
from replayer.compare import Desk
from replayer.config import SchedulerConfig
from replayer.divergence import COMPARED
from replayer.fidelity import fidelity_of
from replayer.history import Fidelity, History
from replayer.prefixes import Blocks, Prefixes
from tests.replayer.conftest import read_case

Captured = pytest.CaptureFixture[str]

PYTHON = os.environ.get("VLLM_PYTHON", "")
real = pytest.mark.skipif(not PYTHON, reason="VLLM_PYTHON names no Python that has vLLM")

SIZES = {
    "max_num_batched_tokens": 64,
    "max_num_seqs": 8,
    "num_blocks": 60,
    "block_size": 16,
    "max_model_len": 1024,
    "num_speculative_tokens": 0,
    "spec_method": None,
    "chunked_prefill": True,
    "prefix_caching": False,
}
NGRAM = {"num_speculative_tokens": 4, "spec_method": "ngram"}
ASYNC = {"scheduler_config": {"async_scheduling": True}}

RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}, {}),
    "ngram": (NGRAM, {}, {}),
    "ngram_few_blocks": ({**NGRAM, "num_blocks": 24}, {}, {}),
    "ngram_prefixes": ({**NGRAM, "prefix_caching": True, "num_blocks": 40}, {}, {}),
    "whole_prompts": ({**NGRAM, "chunked_prefill": False, "max_num_batched_tokens": 1024}, {}, {}),
    "async": ({}, ASYNC, {}),
    "async_few_blocks": ({"num_blocks": 20, "prefix_caching": True}, ASYNC, {}),
    "async_idle": ({}, ASYNC, {"rate": 0.02, "iterations": 1200}),
    "async_drafts": ({"num_speculative_tokens": 3, "spec_method": "eagle"}, ASYNC, {}),
}


@cache
def run_of(name: str) -> tuple[dict[str, Any], EngineInfo]:
    """What vLLM's `EngineCore` did, and how it was configured."""
    sizes, recorded, asked = RUNS[name]
    config = {**SIZES, **sizes}
    message = {
        "sizes": config, "recorded": recorded, "seed": 3, "requests": 60, "iterations": 700, "rate": 0.3,
        "longest": 150, **asked,
    }  # fmt: skip
    drivers = Path(fdtrace.drivers.__file__).parent
    program = Path(__file__).with_name("vllm_engine.py")
    done = subprocess.run(
        [PYTHON, str(program), str(drivers), json.dumps(message)],
        capture_output=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    engine = EngineInfo(engine_id=0, name="vllm", version="0", config=recorded, **config)
    return json.loads(done.stdout), engine


def trace_of(run: dict[str, Any], engine: EngineInfo, path: Path, first: int = 0) -> Path:
    """What a recorder would have written of it that began before the step `first`."""
    number = {request["id"]: i for i, request in enumerate(run["requests"])}
    last = {row[0]: step for step, ran in enumerate(run["rows"]) for row in ran}
    cached = {row[0]: row[3] for ran in reversed(run["rows"]) for row in ran if not row[1]}
    with duckdb.connect(str(path)) as db:
        for table in schema.TABLES:
            columns = ", ".join(f"{column.name} {column.type}" for column in table.columns)
            db.execute(f"CREATE TABLE {table.name} ({columns})")

        def insert(table: str, **values: Any) -> None:
            marks = ", ".join("?" * len(values))
            db.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", list(values.values()))

        insert("trace", schema_version=schema.SCHEMA_VERSION, fdtrace_version="test", state="complete")
        told = {**asdict(engine), "config": json.dumps(engine.config), "env": "{}"}
        insert("engine", **{name: value for name, value in told.items() if value is not None})
        for step, (figures, ran) in enumerate(zip(run["steps"], run["rows"], strict=True)):
            if step < first:
                continue
            decoded = sum(row[2] for row in ran if row[1])
            parts = {"num_decode_tokens": decoded, "num_prefill_tokens": figures["num_tokens"] - decoded}
            insert("step", engine_id=0, step=step, **figures, **parts)
            for name, decodes, *rest in ran:
                kind = "decode" if decodes else "prefill"
                values = dict(zip(ROW, rest, strict=True))
                insert("step_request", engine_id=0, step=step, request=number[name], kind=kind, **values)
        for request in run["requests"]:
            name, ended = request["id"], last.get(request["id"], request["aborted"])
            if request["finished_at"] != MISSING and ended is not None and ended < first:
                continue
            known = request["arrived"] >= first
            insert(
                "request", engine_id=0, request=number[name], request_id=name,
                arrived_step=request["arrived"] if known else None,
                arrived_at=at(request["arrived_at"]) if known else None, finished_at=at(request["finished_at"]),
                num_prompt_tokens=request["prompt"], max_tokens=request["max_tokens"],
                num_cached_tokens=cached.get(name) if known else None, num_output_tokens=request["made"],
                block_hashes=request["hashes"][: request["prompt"] // engine.block_size],
            )  # fmt: skip
            for kind, step in (("aborted", request["aborted"]), ("finished", ended)):
                if step is not None and request["finished_at"] != MISSING:
                    insert("event", engine_id=0, step=step, kind=kind, request=number[name])
    return path


ROW = (
    "num_tokens",
    "num_computed_tokens",
    "num_draft_tokens",
    "num_accepted_tokens",
    "num_blocks",
)


def at(ns: int) -> Any:
    """A time as DuckDB takes it."""
    return None if ns == MISSING else np.datetime64(ns, "ns").astype(str)


def replayed(path: Path) -> tuple[Recording, History]:
    """The trace, and its requests through the real scheduler."""
    with open_trace(path) as trace:
        recording = trace.recording().read_now()
        desk = Desk(recording, RecordedRows(trace, 0))
        (given,) = given_schedulers(["vllm"], PYTHON)
        with given.open(desk.workload.config, {}, recording.engine.config) as driven:
            return recording, desk.reschedule(driven)


def fidelity(history: History) -> Fidelity:
    assert history.outcome.fidelity is not None
    return history.outcome.fidelity


@real
@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_what_the_engine_did_is_reproduced(name: str, tmp_path: Path) -> None:
    run, engine = run_of(name)
    recording, history = replayed(trace_of(run, engine, tmp_path / "t.duckdb"))
    assert recording.num_steps > 100
    if "few_blocks" in name:
        assert recording.steps["num_preempted"].sum() > 5
    if engine.prefix_caching:
        assert recording.requests["num_cached_tokens"].max() > 0
    found = fidelity(history)
    assert found.explanation == ""
    assert found.share == 1.0


@real
@pytest.mark.slow
@pytest.mark.parametrize("name", ["ngram", "async"])
def test_a_recording_that_began_in_the_middle_is_taken_up(name: str, tmp_path: Path) -> None:
    run, engine = run_of(name)
    recording, history = replayed(trace_of(run, engine, tmp_path / "t.duckdb", first=60))
    assert len(recording.initial) > 3
    assert fidelity(history).explanation == ""


@real
@pytest.mark.slow
def test_a_workload_is_scheduled_with_no_trace(tmp_path: Path) -> None:
    case = read_case("speculative")
    path, out = tmp_path / "case.json", tmp_path / "out.jsonl"
    path.write_text(json.dumps({**case, "spec_method": "ngram"}))
    options = ["--scheduler", "vllm", "--scheduler-python", PYTHON, "--decisions", str(out)]
    assert main(["simulate", str(path), *options]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    finished = [name for line in lines for name in line["finished"]]
    assert sorted(finished) == sorted(request["id"] for request in case["requests"])
    assert max(line["tokens"] for line in lines) <= case["max_num_batched_tokens"]


def test_a_recording_that_has_changed_is_told() -> None:
    """The digests of a replay are compared where the figures of a step are equal."""
    recording = Recording(
        EngineInfo(0, "vllm", "0", 64, 8, 4, 16, 60, 1024),
        {"step": np.arange(3), "num_tokens": np.array([5, 5, 5])},
        {"request": np.arange(1), "request_id": np.array(["a"], dtype=object)},
        np.zeros(0, np.int16), np.zeros(2, np.int64), np.array([MISSING]), np.array([MISSING]),
        digests=np.array([7, MISSING, 9]),
    )  # fmt: skip
    columns = {name: np.full(3, MISSING) for name in COMPARED} | {"num_tokens": np.array([5, 5, 5])}
    found = fidelity_of(recording, {**columns, "step": np.arange(3)}, digests=np.array([7, 8, 8]))
    assert (found.num_equal, found.first_divergence) == (2, 2)
    assert "the figures of the whole step are equal" in found.explanation


# What needs no vLLM ----------------------------------------------------------------------------------------


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
        DrivenVllm(cast(Child, None), config, "vllm", {"kv_transfer_config": {"kv_role": "kv_both"}})


def test_a_trace_tells_what_each_step_ran(trace: Path) -> None:
    """By SQL as by numpy; and drafts and hashes beside the acceptances."""
    with open_trace(trace) as opened:
        recording = opened.recording()
        rows = opened.rows(
            "SELECT step, request, num_tokens, coalesce(num_draft_tokens, 0) AS d FROM step_request"
        )
        assert recording.digests is not None
        at = np.searchsorted(recording.steps["step"], [row["step"] for row in rows])
        parts = [np.array([row[name] for row in rows], np.int64) for name in ("request", "num_tokens", "d")]
        found = digests_of(at, (parts[0], parts[1], parts[2]), recording.num_steps)
        known = recording.digests != MISSING
        assert known.any()
        assert (found == recording.digests)[known].all()
        assert recording.drafts is not None
        assert len(recording.drafts) == len(recording.accepts)
        assert recording.vain == {}


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
