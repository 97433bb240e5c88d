"""transformers' continuous batching on a CPU, recorded, against its own figures. `make test-transformers` runs it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from fdtrace.recorder.trace.trace import Trace, open_trace
from tests.trace_contract import broken
from tests.transformers_cb.engine import (
    FEW_BLOCKS,
    FROM_MIDDLE,
    FROM_START,
    OFFLOAD,
    PYTHON,
    Engine,
    attached,
    detach,
    recorded,
    recorded_lines,
)

pytestmark = [
    pytest.mark.skipif(not PYTHON, reason="TRANSFORMERS_PYTHON names no Python that has transformers"),
    pytest.mark.xdist_group("transformers"),
]


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(tmp_path)


def count(trace: Trace, query: str) -> Any:
    return next(iter(trace.rows(query)[0].values()))


@pytest.mark.parametrize("options", FROM_START, ids=" ".join)
def test_from_its_start_every_step_is_the_engines_own(
    tmp_path_factory: pytest.TempPathFactory, options: tuple[str, ...]
) -> None:
    engine, told = recorded(tmp_path_factory, options)
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


def test_a_refusal_says_which_budget_it_was_and_what_was_missing(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    engine, _ = recorded(tmp_path_factory, FEW_BLOCKS)
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


@pytest.mark.parametrize("options", FROM_MIDDLE, ids=" ".join)
def test_attached_in_the_middle_what_is_recorded_is_a_part_of_what_it_ran(
    tmp_path_factory: pytest.TempPathFactory, options: tuple[str, ...]
) -> None:
    found = attached(tmp_path_factory, options)
    lines = found.engine.lines()
    for path in found.traces:
        with open_trace(path) as trace:
            steps = recorded_lines(trace)
            assert len(steps) >= 30
            assert any(lines[at : at + len(steps)] == steps for at in range(len(lines)))
            assert broken(trace) == []
            there = (
                "SELECT count(*) FROM request WHERE arrived_step IS NULL AND num_prompt_tokens IS NOT NULL"
            )
            said = "SELECT count(*) FROM event WHERE kind = 'found' AND request IS NOT NULL"
            assert count(trace, there) == count(trace, said) > 0
            assert trace.rows("SELECT ended_by, state FROM trace") == [
                {"ended_by": "interrupt", "state": "complete"}
            ]


def test_a_request_added_before_the_first_recorded_turn_is_taken_in_once(engine: Engine) -> None:
    command = [PYTHON, "-m", "tests.transformers_cb.taken_in"]
    done = subprocess.run(command, env=engine.environment, capture_output=True, text=True, check=True)
    names = json.loads(done.stdout)
    assert sorted(names["found"]) == sorted(names["there"]) == ["r0", "r1", "r2"]
    assert names["arrived"] == ["r3"]


def test_attaching_and_detaching_leaves_nothing_behind(tmp_path_factory: pytest.TempPathFactory) -> None:
    found = attached(tmp_path_factory, FEW_BLOCKS)
    assert found.held == [found.held[0]] * 3
    assert b"fdtrace-rings" not in found.maps


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
