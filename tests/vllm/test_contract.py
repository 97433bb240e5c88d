"""An engine with vLLM's surface, recorded, against what it wrote itself."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.trace.trace import Trace, open_trace
from tests.recorder.helpers import fdtrace_here
from tests.stands import Stand, calls_of, differing_calls, logged, rows_of
from tests.vllm.conftest import agree

WAYS = [
    ("--inline",),
    ("--inline", "--drafts", "0"),
    (),
    ("--blocks", "60"),
    ("--blocks", "60", "--asynchronous"),
    ("--blocks", "60", "--bitmask"),
    ("--blocks", "60", "--asynchronous", "--bitmask"),
    ("--inline", "--asynchronous", "--drafts", "0"),
    ("--asynchronous", "--budget", "24", "--seqs", "4"),
]


def count(trace: Trace, query: str) -> Any:
    return next(iter(trace.rows(query)[0].values()))


@pytest.mark.parametrize("options", WAYS, ids=" ".join)
def test_steps_equal_what_the_engine_ran(stand: Stand, options: tuple[str, ...]) -> None:
    assert_steps_are_those_of_the_engine(*stand.recorded(*options))


def test_so_they_do_where_the_command_records_it(stand: Stand) -> None:
    """`fdtrace record`, with its collector in a process of its own."""
    assert_steps_are_those_of_the_engine(stand, stand.record("--blocks", "60", "--asynchronous"))


def assert_steps_are_those_of_the_engine(stand: Stand, done: subprocess.CompletedProcess[str]) -> None:
    """The trace holds what the stand-in wrote of each forward."""
    assert done.returncode == 0, done.stderr
    lines = stand.lines()
    with open_trace(stand.trace) as trace:
        assert agree(rows_of(trace), lines)
        totals = [row["num_tokens"] for row in trace.rows("FROM step ORDER BY step")]
        assert totals == [sum(row[2] for row in line["rows"]) for line in lines]
        assert count(trace, "SELECT count(*) FROM request WHERE finish_reason = 'length'") == 60
        assert count(trace, "SELECT count(*) FROM event WHERE kind = 'arrived'") == 60
        assert count(trace, "SELECT count(*) FROM request WHERE num_output_tokens <> max_tokens") == 0
        assert count(trace, "SELECT count(*) FROM step WHERE num_predicted_tokens % 8 <> 0") == 0
        assert count(trace, "SELECT count(num_predicted_tokens) FROM step") == len(totals)
        assert count(trace, "SELECT count(*) FROM step WHERE forward_us IS NULL OR token_budget IS NULL") == 0
        assert count(trace, "SELECT sum(num_stalled) FROM step") == 0


CALLS = [(), ("--blocks", "60", "--budget", "24"), ("--blocks", "60", "--asynchronous", "--bitmask"),
         ("--skips", "5", "--inline")]  # fmt: skip


@pytest.mark.parametrize("options", CALLS, ids=" ".join)
def test_every_call_found_and_did_what_the_engine_says(stand: Stand, options: tuple[str, ...]) -> None:
    stand, done = stand.recorded(*options)
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        found = calls_of(trace)
        steps = count(trace, "SELECT count(*) FROM step")
        assert differing_calls(found, logged(stand.log.with_name("log.calls"))) == []
        blocks = 60 if "60" in options else 400
        assert count(trace, f"SELECT count(*) FROM step WHERE num_blocks <> {blocks}") == 0
    assert [row["first_step"] for row in found if not row["idle"]] == list(range(steps))
    assert all(row["first_step"] is None for row in found if row["idle"])


@pytest.mark.parametrize("more", [(), ("--asynchronous",)], ids=("sync", "async"))
def test_preemptions_are_events_with_what_they_freed(stand: Stand, more: tuple[str, ...]) -> None:
    stand, done = stand.recorded("--blocks", "60", *more)
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        events = trace.rows("FROM preemption")
        assert events
        assert count(trace, "SELECT sum(num_preempted) FROM step") == len(events)
        assert all(event["freed_blocks"] > 0 and event["discarded_tokens"] > 0 for event in events)
        assert count(trace, "SELECT count(*) FROM event WHERE kind = 'rescheduled'") == len(events)
        found = trace.rows("SELECT DISTINCT not_admitted AS why FROM step WHERE num_preempted > 0")
        assert [row["why"] for row in found] == ["preemption"]


def test_every_step_says_why_the_head_of_the_queue_stayed(stand: Stand) -> None:
    stand, done = stand.recorded("--blocks", "60", "--budget", "32", "--skips", "5", "--seqs", "4")
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        assert (
            count(trace, "SELECT count(*) FROM step WHERE (num_waiting > 0) <> (not_admitted IS NOT NULL)")
            == 0
        )
        why = {row["why"] for row in trace.rows("SELECT DISTINCT not_admitted AS why FROM step")}
        assert {"budget", "slots"} <= why
        assert count(trace, "SELECT count(*) FROM step WHERE not_admitted = 'budget' "
                            "AND num_scheduled_tokens < token_budget") == 0  # fmt: skip
        assert count(trace, "SELECT count(*) FROM step WHERE num_missing_blocks <= 0") == 0
        skipped = trace.rows("SELECT DISTINCT reason FROM event WHERE kind = 'skipped'")
        assert [row["reason"] for row in skipped] == ["remote_kvs"]


def test_every_request_that_is_passed_over_says_for_what_it_waits(stand: Stand) -> None:
    stand, done = stand.recorded("--skips", "2", "--inline")
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        skipped = trace.rows("SELECT request, reason FROM event WHERE kind = 'skipped'")
        assert {row["reason"] for row in skipped} == {"remote_kvs"}
        numbers = [row["request"] for row in skipped]
        assert len(numbers) > 10
        assert len(set(numbers)) == len(numbers), "once for each, while it waits for the same"
        assert {number % 2 for number in numbers} == {1}
        heads = trace.rows("SELECT DISTINCT head % 2 AS odd FROM call WHERE not_admitted = 'deferred'")
        assert [row["odd"] for row in heads] == [1]


def test_requests_have_the_time_at_which_they_reached_the_server_and_their_priority(stand: Stand) -> None:
    stand, done = stand.recorded("--inline")
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        waits = trace.rows("SELECT min(arrived_at - sent_at) AS least FROM request")
        assert waits[0]["least"].total_seconds() >= 0.25
        rows = trace.rows("SELECT request, priority FROM request ORDER BY request")
        assert [row["priority"] for row in rows] == [row["request"] % 4 - 2 for row in rows]
        recording = trace.recording()
        assert recording.requests["priority"].tolist() == [row["priority"] for row in rows]
        assert (recording.requests["sent_at"] < recording.requests["arrived_at"]).all()


@pytest.mark.parametrize("more", [(), ("--bitmask",)], ids=("", "bitmask"))
def test_aborted_requests_are_told_as_such(stand: Stand, more: tuple[str, ...]) -> None:
    stand, done = stand.recorded("--aborts", "--asynchronous", *more)
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        aborted = count(trace, "SELECT count(*) FROM event WHERE kind = 'aborted'")
        assert aborted > 0
        assert count(trace, "SELECT count(*) FROM request WHERE finish_reason = 'abort'") == aborted
        assert count(trace, "SELECT count(*) FROM request") == 60
        totals = [row["num_tokens"] for row in trace.rows("FROM step ORDER BY step")]
        assert totals == [sum(row[2] for row in line["rows"]) for line in stand.lines()]


def test_the_engines_row_holds_sizes_and_switches_and_no_name_or_secret(stand: Stand) -> None:
    stand, done = stand.recorded("--prefixes")
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        (engine,) = trace.engines()
    assert (engine["name"], engine["version"], engine["spec_method"]) == ("vllm", "0.0-standin", "ngram")
    assert (engine["max_num_batched_tokens"], engine["max_num_seqs"], engine["block_size"]) == (64, 8, 4)
    config = engine["config"] if isinstance(engine["config"], dict) else json.loads(engine["config"])
    assert config["speculative_config"] == {"num_speculative_tokens": 2, "method": "ngram"}
    assert config["cache_config"]["num_gpu_blocks"] == 400
    for secret in ("/secret", "1.2.3.4", "/home/user", "secret"):
        assert secret not in json.dumps(config)


@pytest.mark.parametrize("more", [("--inline",), ()], ids=("one process", "two"))
def test_padded_batches_and_what_the_drafter_runs_are_compared_with_the_limit(
    stand: Stand, more: tuple[str, ...]
) -> None:
    """A batch of up to 60 tokens is padded to a multiple of 8; the drafter runs three slots more for each request."""
    stand, done = stand.recorded("--budget", "60", "--slots", "3", *more)
    assert done.returncode == 0, done.stderr
    padded, drafted = {}, {}
    for step, line in enumerate(stand.lines()):
        tokens = sum(row[2] for row in line["rows"])
        first = -(-(tokens + 3 * len(line["rows"])) // 8) * 8
        if -(-tokens // 8) * 8 > 60:
            padded[step] = -(-tokens // 8) * 8
        if first > 60:
            drafted[step] = first
    with open_trace(stand.trace) as trace:
        found = trace.rows("SELECT step, limit_name, limit_tokens, num_tokens, excess_tokens FROM exceeded")
        (engine,) = trace.engines()
    told = {(row["limit_name"], row["step"]): row["num_tokens"] for row in found}
    assert len(told) == len(found)
    assert padded
    assert drafted
    assert told == {
        **{("padded", step): tokens for step, tokens in padded.items()},
        **{("drafter", step): tokens for step, tokens in drafted.items()},
    }
    assert all(row["limit_tokens"] == 60 and row["excess_tokens"] == row["num_tokens"] - 60 for row in found)
    assert json.loads(engine["config"])["compilation_config"] == {
        "cudagraph_mode": "PIECEWISE",
        "cudagraph_capture_sizes": [8, 16, 32, 64],
        "max_cudagraph_capture_size": 64,
    }


def test_equal_prefixes_are_seen_within_a_trace_and_not_across_traces(stand: Stand) -> None:
    first: list[Any] = []
    again, (first_run, done) = stand.collect("--prefixes"), stand.recorded("--prefixes")
    assert (again.returncode, done.returncode) == (0, 0)
    for run in (first_run, stand):
        with open_trace(run.trace) as trace:
            rows = trace.rows(
                "SELECT block_hashes, num_prompt_tokens FROM request WHERE num_prompt_tokens >= 4"
            )
        assert all(len(row["block_hashes"]) == row["num_prompt_tokens"] // 4 for row in rows)
        begins = {row["block_hashes"][0] for row in rows}
        assert len(begins) == 3
        first.append(begins)
    assert not first[0] & first[1]


def test_every_rank_is_joined_to_the_engines_steps(stand: Stand) -> None:
    stand, done = stand.recorded("--ranks", "2")
    assert done.returncode == 0, done.stderr
    with open_trace(stand.trace) as trace:
        assert len(trace.engines()) == 1
        steps = count(trace, "SELECT count(*) FROM step")
        assert count(trace, "SELECT count(*) FROM rank_memory WHERE rank = 1") == steps


@pytest.mark.parametrize("more", [("--inline",), ()], ids=("one process", "two"))
def test_the_forward_that_failed_is_a_step(stand: Stand, more: tuple[str, ...]) -> None:
    stand, done = stand.recorded("--fail-at", "40", *more)
    assert done.returncode != 0
    with open_trace(stand.trace) as trace:
        last = trace.rows("FROM step ORDER BY step DESC LIMIT 1")[0]
        assert last["step"] == 39
        assert last["num_tokens"] > 0
        assert last["num_accepted_tokens"] == 0
        assert (
            "RuntimeError in the forward"
            in {row["reason"] for row in trace.rows("FROM event WHERE kind = 'error'")}
            or not more
        )


def attach(stand: Stand, pid: int, name: str, *options: object) -> Path:
    trace = stand.directory / f"{name}.duckdb"
    done = stand.fdtrace("attach", pid, "-o", trace, *options)
    assert done.returncode == 0, done.stderr
    return trace


@pytest.mark.parametrize("more", [(), ("--asynchronous",), ("--inline",)], ids=("sync", "async", "inline"))
def test_attach_in_the_middle_knows_what_runs_already(stand: Stand, more: tuple[str, ...]) -> None:
    options = (*more, "--requests", "100000", "--sleep", "0.002")
    engine = subprocess.Popen(stand.command(*options), env=stand.environment, stdout=subprocess.PIPE)
    try:
        assert engine.stdout is not None
        engine.stdout.readline()
        time.sleep(0.3)
        for name in ("one",) if more else ("one", "two"):
            path = attach(stand, engine.pid, name, "--steps", "80")
            lines = stand.lines()
            with open_trace(path) as trace:
                found = rows_of(trace)
                assert len(found) == 80
                assert sum(agree(found, lines[i : i + 80]) for i in range(len(lines))) == 1
                unknown = "SELECT count(*) FROM request WHERE num_prompt_tokens IS NULL"
                assert count(trace, unknown) == 0
    finally:
        engine.kill()
        engine.wait()


def test_attach_to_an_idle_engine_tells_of_it_before_its_first_step(stand: Stand) -> None:
    engine = subprocess.Popen(
        stand.command("--inline", "--idle", "--requests", "3"), env=stand.environment, stdout=subprocess.PIPE
    )
    try:
        assert engine.stdout is not None
        engine.stdout.readline()
        with open_trace(attach(stand, engine.pid, "idle", "--duration", "1")) as trace:
            assert count(trace, "SELECT count(*) FROM step") == 0
    finally:
        Path(f"{stand.log}.go").touch()
        assert engine.wait(60) == 0


HANGS = (
    "--inline",
    "--drafts",
    "0",
    "--blocks",
    "20",
    "--budget",
    "256",
    "--requests",
    "40",
    "--sleep",
    "0.002",
)
"""A prompt comes that needs more blocks than there are."""


@pytest.mark.parametrize("interrupted", [False, True], ids=["duration", "Ctrl-C"])
def test_attach_to_an_engine_that_hangs_says_what_waits_for_what(stand: Stand, interrupted: bool) -> None:
    engine = subprocess.Popen(stand.command(*HANGS), env=stand.environment, stdout=subprocess.PIPE)
    try:
        assert engine.stdout is not None
        engine.stdout.readline()
        calls = stand.log.with_name("log.calls")
        while not calls.exists() or not hangs(calls):
            time.sleep(0.05)
        options = [
            "attach",
            str(engine.pid),
            "-o",
            str(stand.trace),
            *([] if interrupted else ["--duration", "3"]),
        ]
        said = "no safe point"
        while (
            "no safe point" in said
        ):  # an engine that never sleeps may be in C code whenever it is looked at
            command = subprocess.Popen(
                [sys.executable, "-m", "fdtrace", *options],
                env=stand.environment,
                stderr=subprocess.PIPE,
                text=True,
            )
            if interrupted:
                while command.poll() is None and not num_calls_seen(stand.trace):
                    time.sleep(0.1)
                command.send_signal(signal.SIGINT)
            _, said = command.communicate(timeout=900)
        assert command.returncode == 0, said
    finally:
        engine.kill()
        engine.wait()
    assert "0 steps in" in said
    assert "at the head of the queue wants 20 KV blocks, and requests have 19 in all: it never fits" in said
    with open_trace(stand.trace) as trace:
        (row,) = trace.rows("FROM call")
        assert row["idle"]
        assert row["num_calls"] > 1
        assert (row["num_running"], row["num_missing_blocks"]) == (0, 1)
        assert count(trace, "SELECT count(*) FROM request") == row["num_waiting"]
    report = fdtrace_here("replay", stand.trace)
    assert "it never fits" in report.stdout
    assert "no forward ran" in report.stdout


def num_calls_seen(trace_path: Path) -> int:
    """Calls that a recording in progress has published."""
    if not trace_path.exists():
        return 0
    try:
        with open_trace(trace_path) as trace:
            return int(count(trace, "SELECT coalesce(sum(num_calls), 0) FROM call"))
    except TraceError:  # it is being published
        return 0


def hangs(calls: Path) -> bool:
    """Whether an engine has handed out nothing in its last twenty calls."""
    lines = calls.read_text().split("\n")[:-1][-20:]
    return len(lines) == 20 and all(json.loads(line)["idle"] for line in lines)


def test_a_recording_that_saw_no_work_leaves_nothing_and_names_no_file(stand: Stand) -> None:
    done = stand.record("--requests", "0")
    assert done.returncode == 3
    assert "there is no trace" in done.stderr
    assert "steps in" not in done.stderr
    assert not stand.trace.exists()


def test_only_processes_with_a_scheduler_or_a_runner_are_recorded(stand: Stand) -> None:
    script = "import time, vllm.version; print(1, flush=True); time.sleep(60)"
    idle = subprocess.Popen([sys.executable, "-c", script], env=stand.environment, stdout=subprocess.PIPE)
    try:
        assert idle.stdout is not None
        idle.stdout.readline()
        done = stand.fdtrace("attach", idle.pid, "-o", stand.trace)
        assert done.returncode == 3
        assert "no scheduler was found" in done.stderr
        assert "vllm.version" in done.stderr
    finally:
        idle.kill()
        idle.wait()
