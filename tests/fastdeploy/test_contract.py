"""Both sides of an engine with FastDeploy's surface, recorded and joined, against what its workers wrote themselves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fdtrace.recorder.trace.trace import Trace, open_trace
from tests.fastdeploy.conftest import Stand, logged_rows
from tests.stands import calls_of, differing_calls, logged, rows_of


def finished(output: str) -> dict[str, Any]:
    """The stand-in's own counts."""
    counts: dict[str, Any] = json.loads([line for line in output.splitlines() if line.startswith("{")][-1])
    return counts


def count(trace: Trace, query: str) -> Any:
    return next(iter(trace.rows(query)[0].values()))


@pytest.mark.parametrize(
    "options",
    [
        ("--inline",),
        ("--inline", "--drafts", "0"),
        ("--inline", "--batch-request", "--blocks", "60"),
        (),
        ("--blocks", "60", "--aborts", "--skips"),
        ("--drafts", "0", "--batch-request", "--aborts"),
    ],
    ids=" ".join,
)
def test_steps_equal_what_the_worker_ran(stand: Stand, options: tuple[str, ...]) -> None:
    assert_steps_are_those_of_the_worker(*stand.recorded(*options))


def test_so_they_do_where_the_command_records_it(stand: Stand) -> None:
    """`fdtrace record`, with its collector in a process of its own."""
    assert_steps_are_those_of_the_worker(stand, stand.record("--blocks", "60", "--aborts", "--skips"))


def assert_steps_are_those_of_the_worker(stand: Stand, done: subprocess.CompletedProcess[str]) -> None:
    """The trace holds what the stand-in's worker wrote of each forward, and the stand-in's own counts."""
    assert done.returncode == 0, done.stderr
    lines = stand.lines()
    with open_trace(stand.trace) as trace:
        assert rows_of(trace) == logged_rows(lines)
        steps = trace.rows("FROM step ORDER BY step")
        assert [step["num_stalled"] for step in steps] == [line["stalled"] for line in lines]
        own = finished(done.stdout)
        assert count(trace, "SELECT count(*) FROM event WHERE kind = 'arrived'") == own["made"]
        stopped = "SELECT count(*) FROM request WHERE finish_reason IN ('stop', 'length')"
        assert count(trace, stopped) == own["finished"]
        assert all(step["token_budget"] is not None and step["num_free_blocks"] is not None for step in steps)


def test_a_call_is_counted_once_with_its_first_forward(stand: Stand) -> None:
    stand, done = stand.recorded("--blocks", "60")
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        preempted = count(trace, "SELECT count(*) FROM event WHERE kind = 'preempted'")
        assert preempted > 0
        assert count(trace, "SELECT sum(num_preempted) FROM step") == preempted
        assert count(trace, "SELECT count(*) FROM event WHERE kind = 'rescheduled'") == preempted
        assert count(trace, "SELECT count(*) FROM preemption WHERE freed_blocks > 0") == preempted


CALLS = [
    ("--inline",),
    ("--blocks", "60", "--aborts", "--skips"),
    ("--drafts", "0", "--batch-request", "--aborts"),
    ("--inline", "--role", "prefill"),
    ("--inline", "--role", "decode", "--blocks", "60"),
]


@pytest.mark.parametrize("options", CALLS, ids=" ".join)
def test_every_call_found_and_did_what_the_engine_says(stand: Stand, options: tuple[str, ...]) -> None:
    stand, done = stand.recorded(*options)
    assert done.returncode == 0, done.stderr
    lines = logged(stand.log_of().with_name("log.0.calls"))
    with open_trace(stand.trace) as trace:
        found = calls_of(trace)
        steps = count(trace, "SELECT count(*) FROM step")
        blocks = 60 if "60" in options else 400
        assert count(trace, f"SELECT count(*) FROM step WHERE num_blocks <> {blocks}") == 0
        assert count(trace, "SELECT count(*) FROM call WHERE reserved_output_blocks <> 2") == 0
    assert len({row["num_running_decodes"] - row["num_running"] for row in found}) > 1
    unready = [line.pop("unready") for line in lines]
    assert all(row["num_deferred"] <= most for row, most in zip(found, unready, strict=False))
    assert differing_calls(found, lines) == []
    handed_out = [row["first_step"] for row in found if not row["idle"]]
    assert handed_out == sorted(handed_out)  # in order, none unknown
    assert handed_out[-1] < steps
    assert all(row["first_step"] is None for row in found if row["idle"])


@pytest.mark.parametrize("options", [("--inline",), ()], ids=["one process", "two"])
def test_attach_to_an_engine_that_hangs_says_what_waits_for_what(
    stand: Stand, options: tuple[str, ...]
) -> None:
    command = stand.command(*options, "--blocks", "20", "--sleep", "0.002")
    engine = subprocess.Popen(command, env=stand.environment, stdout=subprocess.PIPE)
    try:
        calls = stand.log_of().with_name("log.0.calls")
        while not (calls.exists() and hangs(calls)):
            time.sleep(0.05)
        done = stand.fdtrace("attach", engine.pid, "-o", stand.trace, "--duration", "3")
    finally:
        engine.kill()
        engine.wait()
    assert done.returncode == 0, done.stderr
    assert "0 steps in" in done.stderr
    assert "it never fits" in done.stderr
    with open_trace(stand.trace) as trace:
        (row,) = trace.rows("FROM call")
        assert (row["num_running"], row["not_admitted"], row["idle"]) == (0, "blocks", True)
        assert row["num_calls"] > 1
        assert row["num_missing_blocks"] > 0
        assert count(trace, f"SELECT request_id FROM request WHERE request = {row['head']}")
        assert count(trace, "SELECT count(*) FROM request") == row["num_waiting"]


def hangs(calls: Path) -> bool:
    """Whether an engine has handed out nothing in its last twenty calls, and nothing runs."""
    lines = [json.loads(line) for line in calls.read_text().split("\n")[:-1][-20:]]
    return len(lines) == 20 and all(line["idle"] and not line["num_running"] for line in lines)


def test_an_engine_with_nothing_to_do_adds_no_call(stand: Stand) -> None:
    """Its last requests end before it does: then it goes on calling for a while."""
    stand, done = stand.recorded("--inline", "--requests", "2", "--rest", "30")
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        assert (
            count(trace, "SELECT count(*) FROM call WHERE num_running = 0 AND num_waiting = 0 AND idle") == 0
        )
        assert count(trace, "SELECT sum(num_calls) FROM call") == len(
            logged(stand.log_of().with_name("log.0.calls"))
        )


def test_every_step_lists_why_the_head_of_the_queue_stayed(stand: Stand) -> None:
    stand, done = stand.recorded("--inline", "--blocks", "60")
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        reasons = {
            row["not_admitted"]
            for row in trace.rows("SELECT DISTINCT not_admitted FROM step WHERE num_waiting > 0")
        }
        assert {"budget", "blocks", "preemption"} <= reasons
        missing = trace.rows("SELECT num_missing_blocks AS n FROM step WHERE not_admitted = 'blocks'")
        assert all(row["n"] is None or row["n"] > 0 for row in missing)
        assert any(row["n"] for row in missing)


def test_with_prefix_caching_equal_prefixes_are_seen_and_no_token_is(stand: Stand) -> None:
    """The stand-in's blocks hold 4 tokens, and every third request begins with the same 16."""
    runs = []
    again, (first_run, done) = stand.collect("--prefix-caching"), stand.recorded("--prefix-caching")
    assert (again.returncode, done.returncode) == (0, 0)
    for run in (first_run, stand):
        with open_trace(run.trace) as trace:
            runs.append(trace.rows("SELECT num_prompt_tokens, block_hashes FROM request ORDER BY request"))
            found = trace.recording().details.block_hashes
            assert found is not None
            shared = [() if one is None else one for one in found]
        assert [len(hashes) for hashes in shared] == [row["num_prompt_tokens"] // 4 for row in runs[-1]]
    for requests in runs:
        lists = [row["block_hashes"] for row in requests if row["num_prompt_tokens"] >= 16]
        begins = {tuple(hashes[:4]) for hashes in lists}
        assert len(begins) == 3 < len(lists)
        assert len({number for begin in begins for number in begin}) == 12
    first, second = ({number for row in rows for number in row["block_hashes"] or ()} for rows in runs)
    assert not first & second


def test_without_prefix_caching_there_are_no_hashes(stand: Stand) -> None:
    stand, done = stand.recorded("--inline")
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        assert count(trace, "SELECT count(block_hashes) FROM request") == 0


def test_skipped_requests_are_told_once_each(stand: Stand) -> None:
    stand, done = stand.recorded("--inline", "--skips")
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        skips = trace.rows("FROM event WHERE kind = 'skipped'")
        assert len(skips) == 8
        assert {row["reason"] for row in skips} <= {"preprocessing", "no tokens fit"}


def test_every_tensor_parallel_rank_tells_its_memory(stand: Stand) -> None:
    stand, done = stand.recorded("--ranks", "3")
    assert done.returncode == 0, done.stderr
    lines = stand.lines()
    with open_trace(stand.trace) as trace:
        assert count(trace, "SELECT count(*) FROM engine") == 1
        assert rows_of(trace) == logged_rows(lines)
        ranks = trace.rows(
            "SELECT rank, count(*) AS n, min(reserved_bytes) AS least FROM memory GROUP BY ALL ORDER BY ALL"
        )
        assert [(row["rank"], row["n"], row["least"]) for row in ranks] == [
            (rank, len(lines), 5000 * (rank + 1)) for rank in range(3)
        ]
        # The stand-in's allocator counts its calls, so equal counts are equal forwards.
        apart = "SELECT count(*) FROM memory a JOIN memory b USING (engine_id, step) WHERE a.rank = 0 AND b.rank > 0 "
        assert count(trace, apart + "AND b.allocated_bytes - a.allocated_bytes <> 1000 * b.rank") == 0


def test_each_data_parallel_rank_is_an_engine(stand: Stand) -> None:
    stand, done = stand.recorded("--dp", "3", "--batch-request")
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        engines = trace.engines()
        assert sorted(engine["dp_rank"] for engine in engines) == [0, 1, 2]
        for engine in engines:
            assert rows_of(trace, engine["engine_id"]) == logged_rows(stand.lines(engine["dp_rank"]))


def test_overlap_mode_tells_the_predicted_beside_the_real_and_the_accepted_of_the_same_forward(
    stand: Stand,
) -> None:
    stand, done = stand.recorded("--overlap")
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        found = rows_of(trace)
        lines = logged_rows(stand.lines())
        assert found == lines[: len(found)]
        assert len(found) >= len(lines) - 1  # nobody waited for the last forward's accepted tokens
        assert (
            count(trace, "SELECT count(*) FROM step WHERE num_predicted_tokens IS DISTINCT FROM num_tokens")
            == 0
        )


def test_the_forward_that_failed_is_a_step(stand: Stand) -> None:
    stand, done = stand.recorded("--inline", "--fail-at", "20")
    assert done.returncode == 1
    assert "MemoryError" in done.stderr
    with open_trace(stand.trace) as trace:
        assert rows_of(trace) == logged_rows(stand.lines())
        assert count(trace, "SELECT max(step) FROM step") == 19
        assert count(trace, "SELECT reason FROM event WHERE kind = 'error'") == "MemoryError in execute_model"


def test_steps_go_on_where_a_worker_is_replaced(stand: Stand) -> None:
    stand, done = stand.recorded("--restart-at", "30", "--requests", "2", "--budget", "500")
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        steps = [row["step"] for row in trace.rows("SELECT step FROM step ORDER BY step")]
        assert steps == list(range(len(stand.lines())))
        assert count(trace, "SELECT count(*) FROM engine") == 1


def test_a_hook_that_meets_something_unexpected_switches_itself_off(stand: Stand) -> None:
    stand, done = stand.recorded("--strange", "--inline")
    assert done.returncode == 0, done.stderr
    assert finished(done.stdout)["finished"] == 40
    with open_trace(stand.trace) as trace:
        found = rows_of(trace)
        assert 0 < len(found) < len(stand.lines())
        assert found == logged_rows(stand.lines())[: len(found)]
        assert "num_gpu_blocks" in count(trace, "SELECT reason FROM event WHERE kind = 'switched_off'")


def test_a_killed_collector_neither_loses_nor_doubles_a_row(stand: Stand) -> None:
    command = [
        "record",
        "-o",
        str(stand.trace),
        "--",
        *stand.command("--requests", "150", "--ranks", "2", "--sleep", "0.01"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "fdtrace", *command],
        env=stand.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    killed = 0
    while process.poll() is None and killed < 5:
        time.sleep(0.7)
        killed += _kill_collector(str(stand.trace))
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    assert killed
    with open_trace(stand.trace) as trace:
        lines = stand.lines()
        assert rows_of(trace) == logged_rows(lines)
        assert count(trace, "SELECT count(*) FROM rank_memory") == len(lines)
        assert count(trace, "SELECT count(*) FROM request WHERE finished_at IS NOT NULL") == 150


def _kill_collector(path: str) -> bool:
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                command = file.read().decode().split("\0")
        except OSError:
            continue
        if "fdtrace.recorder.collector" in command and any(path in part for part in command):
            os.kill(int(name), signal.SIGKILL)
            return True
    return False
