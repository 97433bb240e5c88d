"""`--scheduler vllm`: vLLM's own scheduler, where VLLM_PYTHON names a Python that has vLLM.

FDTRACE_TEST_VLLM=all runs every configuration, not the most telling four.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from fdtrace.cli import main
from fdtrace.recorded_rows import RecordedRows
from fdtrace.recorder import schema
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.recording import EngineInfo, Recording
from fdtrace.recorder.trace.trace import open_trace
from fdtrace.replayer.experiment import Experiment
from fdtrace.replayer.history.history import Fidelity, History
from fdtrace.scheduler_option import given_schedulers
from tests.fdtrace.vllm_process import engine_process
from tests.replayer.conftest import DATA, read_case

Captured = pytest.CaptureFixture[str]

PYTHON = os.environ.get("VLLM_PYTHON", "")
pytestmark = pytest.mark.timeout(1200)  # vLLM's own loop takes minutes where others share the machine
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

NAMES = list(RUNS)
if os.environ.get("FDTRACE_TEST_VLLM") != "all":
    NAMES = ["ngram", "ngram_prefixes", "async", "async_few_blocks"]


@cache
def run_of(name: str) -> tuple[dict[str, Any], EngineInfo]:
    """What vLLM's `EngineCore` did, and how it was configured."""
    sizes, recorded, asked = RUNS[name]
    config = {**SIZES, **sizes}
    message = {
        "sizes": config, "recorded": recorded, "seed": 3, "requests": 60, "iterations": 700, "rate": 0.3,
        "longest": 150, **asked,
    }  # fmt: skip
    engine = EngineInfo(engine_id=0, name="vllm", version="0", config=recorded, **config)
    return engine_process(PYTHON).ask(message), engine


def trace_of(run: dict[str, Any], engine: EngineInfo, path: Path, first: int = 0) -> Path:
    """What a recorder would have written of it that began before the step `first`."""
    number = {request["id"]: i for i, request in enumerate(run["requests"])}
    last = {row[0]: step for step, ran in enumerate(run["rows"]) for row in ran}
    cached = {row[0]: row[3] for ran in reversed(run["rows"]) for row in ran if not row[1]}
    with duckdb.connect(str(path)) as db:
        db.begin()  # each of thousands of rows would else be written to disk before the next
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
                priority=request["priority"],
                block_hashes=request["hashes"][: request["prompt"] // engine.block_size],
            )  # fmt: skip
            for kind, step in (("aborted", request["aborted"]), ("finished", ended)):
                if step is not None and request["finished_at"] != MISSING:
                    insert("event", engine_id=0, step=step, kind=kind, request=number[name])
        db.commit()
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
        recording = trace.recording().loaded()
        experiment = Experiment(recording, RecordedRows(trace, 0))
        (given,) = given_schedulers(["vllm"], PYTHON)
        with given.open(experiment.workload.config, {}, recording.engine.config) as driven:
            return recording, experiment.reschedule(driven)


def fidelity(history: History) -> Fidelity:
    assert history.outcome.fidelity is not None
    return history.outcome.fidelity


@real
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
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
    assert len(recording.details.initial) > 3
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


def workload(path: Path, **changes: Any) -> str:
    sizes = {"max_num_seqs": 8, "num_blocks": 60, "block_size": 16, "max_num_batched_tokens": 512}
    requests = [
        {"id": "small", "arrival": 0, "prompt": 100, "output": 5},
        {"id": "big", "arrival": 1, "prompt": 1200, "output": 5},
        {"id": "later", "arrival": 2, "prompt": 50, "output": 5},
    ]
    path.write_text(json.dumps({**sizes, "max_model_len": 4096, "requests": requests, **changes}))
    return str(path)


@real
def test_a_simulation_says_why_the_head_waits(tmp_path: Path, capsys: Captured) -> None:
    """For a slot, for the budget, for blocks; and in a call that preempts, because of that."""
    requests = [{"id": f"r{i}", "arrival": i // 4, "prompt": 150, "output": 90} for i in range(16)]
    requests += [{"id": f"s{i}", "arrival": 600, "prompt": 20, "output": 20} for i in range(12)]
    case = workload(tmp_path / "w.json", max_num_batched_tokens=256, requests=requests)
    options = ["--scheduler", "vllm", "--scheduler-python", PYTHON, "--json"]
    assert main(["simulate", case, *options]) == 0
    (found,) = json.loads(capsys.readouterr().out)["schedulers"]
    blocked = found["waits"]["totals"]["steps_blocked"]
    assert {"blocks", "slots", "budget", "preemption"} <= blocked.keys()
    assert "unknown" not in blocked


@real
def test_the_trace_of_a_simulation_replays_as_it(tmp_path: Path, capsys: Captured) -> None:
    """Chunks of 2,048 tokens, a head that waits for blocks, and short requests behind it."""
    requests = [{"id": f"r{i}", "arrival": 0, "prompt": 900, "output": 60} for i in range(4)]
    requests += [{"id": "big", "arrival": 5, "prompt": 3000, "output": 20}]
    requests += [{"id": f"s{i}", "arrival": 6 + i, "prompt": 50, "output": 20} for i in range(6)]
    sizes = {"max_num_seqs": 32, "num_blocks": 300, "block_size": 16, "max_num_batched_tokens": 2048}
    workload, trace = tmp_path / "w.json", str(tmp_path / "t.duckdb")
    workload.write_text(json.dumps({**sizes, "max_model_len": 8192, "requests": requests}))
    by = ["--scheduler", "vllm", "--scheduler-python", PYTHON]
    assert main(["simulate", str(workload), *by, "-o", trace]) == 0
    assert "big was the head for" in capsys.readouterr().out
    assert main(["replay", trace, *by, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["formulas"][1]
    assert found["fidelity"]["share"] == 1.0


@real
def test_a_head_larger_than_the_cache_is_told_as_the_cause(tmp_path: Path, capsys: Captured) -> None:
    options = ["--scheduler", "vllm", "--scheduler-python", PYTHON, "--json"]
    assert main(["simulate", workload(tmp_path / "w.json"), "-f", "original", *options]) == 1
    model, vllm = json.loads(capsys.readouterr().out)["schedulers"]
    assert "the head of the queue, big, needs 75 of 59 blocks" in vllm["hang"]["cause"]
    assert "big preempts itself again and again" in model["hang"]["cause"]
    assert "needs 75 of 60 blocks" in model["hang"]["cause"]
    assert vllm["num_finished"] == 1


@real
def test_a_prefill_that_preempts_itself_again_and_again(tmp_path: Path, capsys: Captured) -> None:
    """A search found it (docs/search.md): the second chunk of 64 tokens needs a block more, for the draft."""
    case, out = DATA / "found" / "vllm_prefill_preempts_itself.json", tmp_path / "out.jsonl"
    options = ["--scheduler", "vllm", "--scheduler-python", PYTHON, "--decisions", str(out)]
    assert main(["simulate", str(case), *options]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    preempts = [line for line in lines if line["preempted"]]
    assert [line["step"] for line in preempts if line["preempted"] == ["r2"]] == list(range(12, 53, 2))
    assert {line["not_admitted"] for line in preempts} == {"preemption"}
    assert {line["num_missing_blocks"] for line in preempts} == {None}
    assert "21 prefills of 1 request began again after a preemption" in capsys.readouterr().out
    assert all((line["not_admitted"] is None) == (not line["waiting"]) for line in lines)


@real
def test_a_role_that_it_has_not(tmp_path: Path, capsys: Captured) -> None:
    options = ["-f", "original", "--scheduler", "vllm", "--scheduler-python", PYTHON]
    file = workload(tmp_path / "w.json", role="decode", num_blocks=300)
    assert main(["simulate", file, *options]) == 2
    said = capsys.readouterr()
    assert "3 of 3" in said.out, "the model's row is printed all the same"
    assert "vLLM's scheduler has no role 'decode' here" in said.err
