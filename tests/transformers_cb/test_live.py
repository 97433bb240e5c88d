"""transformers' continuous batching on a CPU, recorded, against its own figures. `make test-transformers` runs it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from fdtrace.recorder.trace.trace import Trace, open_trace
from tests.trace_contract import broken
from tests.transformers_cb.engine import PYTHON, Engine, detach, recorded_lines

pytestmark = [
    pytest.mark.skipif(not PYTHON, reason="TRANSFORMERS_PYTHON names no Python that has transformers"),
    pytest.mark.xdist_group("transformers"),
]

FEW_BLOCKS = ("--blocks", "24")
OFFLOAD = ("--offload-gib", "0.01")
PREFIXES = ("--prefixes", "3", "--shared", "48")
WAYS = [
    (),
    ("--scheduler", "prefill_first"),
    ("--seqs", "4"),
    (*PREFIXES, "--blocks", "32"),
    FEW_BLOCKS,
    (*FEW_BLOCKS, *OFFLOAD),
    (*FEW_BLOCKS, "--cancel", "0.3"),
    ("--asynchronous",),
    (*FEW_BLOCKS, *OFFLOAD, "--asynchronous"),
]


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path)


def count(trace: Trace, query: str) -> Any:
    return next(iter(trace.rows(query)[0].values()))


@pytest.mark.parametrize("options", WAYS, ids=" ".join)
def test_from_its_start_every_step_is_the_engines_own(engine: Engine, options: tuple[str, ...]) -> None:
    told = engine.record(*options)
    assert told["failed"] == told["wrong"] == 0
    lines = engine.lines()
    with open_trace(engine.trace) as trace:
        found = recorded_lines(trace)
        if "--asynchronous" in options:  # a last batch, whose requests had all ended, is never updated
            lines = lines[: len(found)] if len(lines) == len(found) + 1 else lines
        assert found == lines
        assert broken(trace) == []
        sums = trace.rows(
            "SELECT sum(num_prompt_tokens)::BIGINT AS prompt, sum(num_output_tokens)::BIGINT AS generated "
            "FROM request WHERE finish_reason <> 'abort'"
        )
        if "--cancel" not in options:
            assert sums == [{"prompt": told["prompt"], "generated": told["generated"]}]
            assert count(trace, "SELECT count(*) FROM request WHERE finish_reason = 'length'") == 40
        unknown = "forward_us IS NULL OR token_budget <> 64 OR cache_read_budget IS NULL"
        assert count(trace, f"SELECT count(*) FROM step WHERE {unknown}") == 0
        if FEW_BLOCKS[1] in options and "--cancel" not in options:
            check_preemptions(trace, offloaded=bool(set(OFFLOAD) & set(options)))
            come_back = count(trace, "SELECT count(*) FROM event WHERE kind = 'rescheduled'")
            preempted = count(trace, "SELECT count(*) FROM event WHERE kind = 'preempted'")
            # Scheduled ahead, a request may be taken out again before the forward of its coming back.
            assert 0 < come_back <= preempted
            assert come_back == preempted or "--asynchronous" in options


def check_preemptions(trace: Trace, *, offloaded: bool) -> None:
    """Each says what it freed, and whether what that held was kept on the CPU; each comes back."""
    events = trace.rows("FROM preemption")
    assert len(events) > 0
    assert count(trace, "SELECT sum(num_preempted) FROM step") == len(events)
    assert all(event["freed_blocks"] > 0 and event["reason"] == "blocks" for event in events)
    assert any(event["discarded_tokens"] == 0 for event in events) == offloaded


def test_a_refusal_says_which_budget_it_was_and_what_was_missing(engine: Engine) -> None:
    engine.record(*FEW_BLOCKS)
    with open_trace(engine.trace) as trace:
        rows = trace.rows(
            "SELECT not_admitted AS why, count(*) AS n, min(num_missing_blocks) AS missing FROM call GROUP BY ALL"
        )
        found = {row["why"]: row for row in rows}
        assert found.keys() >= {"budget", "safety_margin", "preemption", None}
        assert found["safety_margin"]["missing"] >= 1
        assert count(trace, "SELECT count(*) FROM call WHERE not_admitted IS NULL AND num_waiting > 0") == 0
        over = "SELECT count(*) FROM step WHERE num_cache_read_tokens > cache_read_budget"
        assert count(trace, over) == 0


def test_attached_in_the_middle_what_is_recorded_is_a_part_of_what_it_ran(engine: Engine) -> None:
    with engine.served("--requests", "100000", "--seconds", "600", *FEW_BLOCKS) as process:
        while not engine.log.exists() or len(engine.log.read_text().splitlines()) < 50:
            time.sleep(0.05)
        recording = engine.attach(process.pid)
        seen = len(engine.log.read_text().splitlines())
        while len(engine.log.read_text().splitlines()) < seen + 200:
            time.sleep(0.05)
        detach(recording)
        maps = Path(f"/proc/{process.pid}/maps").read_bytes()
        assert process.poll() is None
    assert b"fdtrace-rings" not in maps
    lines = engine.lines()
    with open_trace(engine.trace) as trace:
        found = recorded_lines(trace)
        assert len(found) >= 150
        assert any(lines[at : at + len(found)] == found for at in range(len(lines)))
        assert broken(trace) == []
        there = "SELECT count(*) FROM request WHERE arrived_step IS NULL AND num_prompt_tokens IS NOT NULL"
        assert count(trace, there) > 0
        assert trace.rows("SELECT ended_by, state FROM trace") == [
            {"ended_by": "interrupt", "state": "complete"}
        ]


def test_attached_idle_its_sizes_are_known_and_the_first_request_is_recorded(engine: Engine) -> None:
    with engine.served("--wait-for-stdin", "--requests", "20") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        recording = engine.attach(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        told = json.loads(process.stdout.readline().removeprefix("served "))
        detach(recording)
        with open_trace(engine.trace) as trace:
            found = trace.rows(
                "SELECT sum(num_prompt_tokens)::BIGINT AS prompt, "
                "sum(num_output_tokens)::BIGINT AS generated FROM request"
            )
            assert found == [{"prompt": told["prompt"], "generated": told["generated"]}]
            (row,) = trace.engines()
            assert (row["name"], row["num_blocks"], row["block_size"]) == ("transformers", 64, 16)
            assert recorded_lines(trace) == engine.lines()


def test_attaching_and_detaching_leaves_nothing_behind(engine: Engine) -> None:
    def held(pid: int) -> tuple[int, int]:
        process = psutil.Process(pid)
        return process.num_fds(), process.num_threads()

    with engine.served("--requests", "100000", "--seconds", "600") as process:
        detach(engine.attach(process.pid, engine.directory / "first.duckdb"))
        before = held(process.pid)
        for i in range(3):
            detach(engine.attach(process.pid, engine.directory / f"{i}.duckdb"))
        assert held(process.pid) == before


def test_killed_every_token_that_a_client_was_given_is_in_the_trace(engine: Engine) -> None:
    told = engine.directory / "delivered"
    with engine.served(
        "--requests", "100000", "--seconds", "600", "--delivered", str(told), "--wait-for-stdin"
    ) as it:
        assert it.stdin is not None
        recording = engine.attach(it.pid)
        it.stdin.write("\n")
        it.stdin.flush()
        while not told.exists() or int(told.read_text() or 0) < 300:
            time.sleep(0.02)
        it.kill()
        it.wait()
        recording.communicate(timeout=300)
    with open_trace(engine.trace) as trace:
        assert trace.rows("SELECT state FROM trace") == [{"state": "complete"}]
        assert count(trace, "SELECT sum(num_output_tokens) FROM request") >= int(told.read_text())
        steps = trace.rows("SELECT count(*) AS n, max(step) + 1 AS until FROM step")
        assert steps[0]["n"] == steps[0]["until"]
        lines = engine.lines()
        found = recorded_lines(trace)
        assert found == lines[: len(found)]
        assert len(lines) - len(found) <= 1


def test_a_process_that_serves_twice_is_one_recording(engine: Engine, tmp_path: Path) -> None:
    script = tmp_path / "twice.py"
    script.write_text(
        "import sys, load, torch\n"
        "from transformers import GenerationConfig\n"
        "torch.set_num_threads(1)\n"
        "model = load.random_model('tiny')\n"
        "given = load.configuration(load.parse([]))\n"
        "for i in range(2):\n"
        "    out = model.generate_batch([[5, 6, 7 + i]] * 4, generation_config=GenerationConfig(max_new_tokens=8,\n"
        "        do_sample=False, eos_token_id=-1, pad_token_id=0), continuous_batching_config=given)\n"
        "    assert all(len(one.generated_tokens) == 8 for one in out.values()), out\n"
    )
    command = engine.fdtrace("record", "-o", engine.trace, "--", PYTHON, script)
    environment = engine.environment | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), engine.environment["PYTHONPATH"]])
    }
    process = psutil.Popen(command, env=environment)
    assert process.wait(timeout=300) == 0
    with open_trace(engine.trace) as trace:
        assert count(trace, "SELECT sum(num_output_tokens) FROM request") == 64
        assert count(trace, "SELECT count(*) FROM request WHERE finish_reason = 'length'") == 8
        assert broken(trace) == []
