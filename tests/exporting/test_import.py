"""`fdtrace import`: ForwardPassMetrics become steps of a trace, and what is wrong is refused with its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

from fdtrace.cli import main
from tests.exporting.conftest import BEGAN

Captured = pytest.CaptureFixture[str]
SIZE = ("--set", "max_num_batched_tokens=512")


def rows_of(path: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(path), read_only=True) as db:
        return db.execute(query).fetchall()


def record(**changes: Any) -> dict[str, Any]:
    """A forward of 2 chunks of 300 tokens and 3 decodes."""
    scheduled = {
        "num_prefill_requests": 2,
        "sum_prefill_tokens": 600,
        "num_decode_requests": 3,
        **changes.pop("scheduled", {}),
    }
    return {
        "version": 1,
        "worker_id": "w",
        "dp_rank": 0,
        "counter_id": 7,
        "wall_time": 0.025,
        "scheduled_requests": scheduled,
        "queued_requests": {"num_prefill_requests": 4, "num_decode_requests": 1},
        **changes,
    }


def imported(directory: Path, *values: Any, options: tuple[str, ...] = SIZE) -> Path:
    source, out = directory / "fpm.jsonl", directory / "t.duckdb"
    source.write_text("".join(json.dumps(value) + "\n" for value in values))
    assert main(["import", str(source), "-o", str(out), *options]) == 0
    return out


FIGURES = (
    "SELECT step, num_tokens, num_prefill_tokens, num_decode_tokens, num_waiting, epoch_ns(ts) FROM step "
    "ORDER BY engine_id, step"
)


def test_what_was_exported_comes_back(timed: Path, tmp_path: Path, capsys: Captured) -> None:
    """With the lengths of requests, each step's tokens; without them, each decode as one token."""
    source, out = tmp_path / "fpm.jsonl.gz", tmp_path / "t.duckdb"
    arguments = ["export", str(timed), "--to", "fpm", "-o", str(source)]
    assert main([*arguments, "--request-lengths"]) == 0
    assert main(["import", str(source), "--like", str(timed), "-o", str(out)]) == 0
    waiting = "num_waiting + (SELECT count(*) FROM preemption p WHERE p.step = step.step)"  # as export counts
    recorded = rows_of(timed, FIGURES.replace("num_waiting", waiting))
    back = rows_of(out, FIGURES)
    assert [row[:-1] for row in back] == [row[:-1] for row in recorded]
    behind = [was[-1] - 300_000 - row[-1] for row, was in zip(back, recorded, strict=True)]
    assert 0 <= min(behind) <= max(behind) < 1_000_000, (
        "the start of the call; moments are kept in milliseconds"
    )
    exceeded = "SELECT step, limit_tokens, excess_tokens, limit_name FROM exceeded ORDER BY step"
    assert rows_of(out, exceeded) == rows_of(timed, exceeded) != []
    sizes = "SELECT max_num_batched_tokens, max_num_seqs, block_size, num_blocks, max_model_len FROM engine"
    assert rows_of(out, sizes) == rows_of(timed, sizes)
    assert rows_of(out, "SELECT DISTINCT forward_us FROM step WHERE step < 100") == [(20_000,)]
    assert main([*arguments, "--force"]) == 0
    capsys.readouterr()
    out.unlink()
    assert main(["import", str(source), *SIZE, "-o", str(out)]) == 0
    said = capsys.readouterr().err
    assert "each decode counts as one token" in said
    assert "assumed: max_num_seqs 256" in said
    decodes = "SELECT count(*) FILTER (kind = 'decode') FROM step_request GROUP BY step ORDER BY step"
    assert rows_of(out, "SELECT num_decode_tokens FROM step ORDER BY step") == rows_of(timed, decodes)


def test_its_trace_is_read_by_the_commands(tmp_path: Path, capsys: Captured) -> None:
    steps = [record(counter_id=i, wall_time=0.02) for i in range(5)]
    lines = [{"received_at_ns": int(BEGAN) + 20_000_000 * i, "metrics": step} for i, step in enumerate(steps)]
    out = imported(tmp_path, *lines)
    assert main(["info", str(out)]) == 0
    assert "sums of each forward" in capsys.readouterr().out
    assert main(["sql", str(out), "SELECT sum(excess_tokens) FROM exceeded", "--format", "csv"]) == 0
    assert capsys.readouterr().out.split() == ["sum(excess_tokens)", str(5 * (603 - 512))]
    drawn = tmp_path / "t.json"
    assert main(["export", str(out), "--to", "chrome", "-o", str(drawn)]) == 0
    events = json.loads(drawn.read_text())["traceEvents"]
    assert [event["args"]["step"] for event in events if event["ph"] == "B"] == list(range(5))


@pytest.mark.parametrize(
    "command", [["replay", "--report"], ["replay", "--as-recorded", "--report"], ["check", "-f", "pr7499"]]
)
def test_a_replay_of_sums_is_refused(command: list[str], tmp_path: Path, capsys: Captured) -> None:
    out = imported(tmp_path, record())
    capsys.readouterr()
    assert main([command[0], str(out), *command[1:]]) == 2
    said = capsys.readouterr()
    assert "this trace cannot be replayed" in said.err
    assert "imported from ForwardPassMetrics" in said.err
    assert not said.out


def test_every_way_in_which_they_are_kept_is_read(tmp_path: Path) -> None:
    at = int(BEGAN) // 1_000_000
    lines = [
        {
            "timestamp": 3,
            "event": {"schema": "dynamo.fpm.trace.v1", "observed_at_unix_ms": at, "fpm": record()},
        },
        {"received_at_ns": at * 1_000_000, "metrics": record(counter_id=8)},
        {"sequence": 5, "published_at_ms": at, "metrics": record(counter_id=9)},
        {"recv_ms": at, "fpm": record(counter_id=10)},
        record(counter_id=11, observed_at_unix_ms=at),
        record(counter_id=12),
    ]
    begin = int(BEGAN) - 25_000_000
    expected = [(step, 603, 600, 3, 5, begin) for step in range(7, 12)]
    assert rows_of(imported(tmp_path, *lines), FIGURES) == [*expected, (12, 603, 600, 3, 5, None)]


def test_each_rank_is_an_engine_and_idle_records_are_no_steps(tmp_path: Path, capsys: Captured) -> None:
    idle = {"version": 1, "worker_id": "w", "wall_time": 0.0, "scheduled_requests": {}}
    out = imported(
        tmp_path, record(), record(dp_rank=1, counter_id=3), idle, record(counter_id=9), record(worker_id="v")
    )
    said = capsys.readouterr().err
    assert "1 records of an idle engine are left out" in said
    assert "4 steps of 3 engines" in said
    ranks = "SELECT config->>'$.worker_id', dp_rank, list(step ORDER BY step) FROM engine JOIN step USING (engine_id)"
    assert rows_of(out, f"{ranks} GROUP BY ALL ORDER BY ALL") == [
        ("v", 0, [7]),
        ("w", 0, [7, 9]),
        ("w", 1, [3]),
    ]


def test_files_of_one_run_follow_each_other(tmp_path: Path, capsys: Captured) -> None:
    paths = [tmp_path / f"dynamo-fpm.w.00000{i}.jsonl.gz" for i in range(2)]
    for i, path in enumerate(paths):
        lines = (json.dumps(record(counter_id=2 * i + j)) + "\n" for j in range(2))
        path.write_bytes(gzip.compress("".join(lines).encode()))
    out = tmp_path / "t.duckdb"
    assert main(["import", *map(str, paths), *SIZE, "-o", str(out)]) == 0
    assert rows_of(out, "SELECT list(step) FROM step") == [([0, 1, 2, 3],)]
    assert main(["import", *map(str, reversed(paths)), *SIZE, "-o", str(tmp_path / "u.duckdb")]) == 2
    assert f"{paths[0]}, line 1: `counter_id` is 0" in capsys.readouterr().err
    assert not (tmp_path / "u.duckdb").exists()


WRONG: dict[str, tuple[Any, str]] = {
    "no metrics": ({"input_length": 5}, "line 2 holds no ForwardPassMetrics"),
    "another version": (record(version=2), "line 2: `version` is 2"),
    "minutes for seconds": (record(wall_time=1e9), "line 2: `wall_time` is 1000000000.0"),
    "a time that goes back": (record(counter_id=8, wall_time=-1), "line 2: `wall_time` is -1"),
    "a text for a count": (
        record(scheduled={"num_decode_requests": "three"}),
        "line 2, scheduled_requests: `num_decode_requests` is 'three'",
    ),
    "a negative count": (
        record(scheduled={"sum_prefill_tokens": -1}),
        "line 2, scheduled_requests: `sum_prefill_tokens` is -1",
    ),
    "lengths of other requests": (
        record(scheduled={"extend_lengths": [600, 3]}),
        "line 2, scheduled_requests: `extend_lengths` is",
    ),
    "a list for the queue": (record(queued_requests=[]), "line 2: `queued_requests` is"),
    "no moment": (record(observed_at_unix_ms="noon"), "line 2: `observed_at_unix_ms` is 'noon'"),
    "the same forward again": (record(), "line 2: `counter_id` is 7"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_refused_with_its_place(kind: str, tmp_path: Path, capsys: Captured) -> None:
    value, message = WRONG[kind]
    source, out = tmp_path / "fpm.jsonl", tmp_path / "t.duckdb"
    source.write_text(json.dumps(record()) + "\n" + json.dumps(value) + "\n")
    assert main(["import", str(source), *SIZE, "-o", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_options_that_make_no_sense(tmp_path: Path, capsys: Captured) -> None:
    source, out = tmp_path / "fpm.jsonl", tmp_path / "t.duckdb"
    source.write_text(
        json.dumps(record(scheduled={"sum_prefill_tokens": 0, "num_decode_requests": 0})) + "\n"
    )
    wrong = {
        "--set max_num_batched_tokens=… is missing": [],
        "--set 'max_num_batched_tokens=0'": ["--set", "max_num_batched_tokens=0"],
        "--set 'budget=5' assigns nothing": ["--set", "budget=5"],
        "all 1 records are of an idle engine": [*SIZE],
    }
    for message, options in wrong.items():
        assert main(["import", str(source), "-o", str(out), *options]) == 2
        assert message in capsys.readouterr().err
    out.write_text("mine")
    assert main(["import", str(source), "-o", str(out), *SIZE]) == 3
    assert out.read_text() == "mine"


def test_workload_names_the_way(tmp_path: Path, capsys: Captured) -> None:
    source = tmp_path / "fpm.jsonl"
    source.write_text(json.dumps({"event": {"fpm": record()}}) + "\n")
    for command in (
        ["workload", str(source), "-o", str(tmp_path / "c.json")],
        ["simulate", str(source), "-f", "pr7499"],
    ):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "holds ForwardPassMetrics, and no request" in said
        assert "fdtrace import" in said
