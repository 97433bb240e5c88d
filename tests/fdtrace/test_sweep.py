"""`fdtrace sweep`: the grid, what is allowed, what is best; the same on one process and on several."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest

from fdtrace.cli import main
from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.search.sweep_grid import (
    grid_of,
    pareto_front,
    parse_conditions,
    parse_goals,
    parse_varied,
)
from fdtrace.searching.sweeping import SweepSource, SweepWorker

Captured = pytest.CaptureFixture[str]
CASE = {
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "block_size": 16,
    "max_model_len": 256,
    "num_blocks": 60,
    "num_speculative_tokens": 3,
    "requests": [
        {"id": f"r{i}", "arrival": i, "prompt": 90, "output": 60, "accepts": [1]} for i in range(16)
    ],
}


@pytest.fixture
def case(tmp_path: Path) -> str:
    path = tmp_path / "case.json"
    path.write_text(json.dumps(CASE))
    return str(path)


def test_values_are_listed_multiplied_or_counted() -> None:
    assert parse_varied("a=32:256:x2").values == (32, 64, 128, 256)
    assert parse_varied("a=1:7:+3").values == (1, 4, 7)
    assert parse_varied("a=3:5").values == (3, 4, 5)
    assert parse_varied("a = 0.5, 2,true,2").values == (0.5, 2, "true")
    assert len(grid_of([parse_varied("a=1:3"), parse_varied("b=1,2")])) == 6
    for text in ("a", "a=", "=3", "a=5:3", "a=1:9:x1", "a=0:9:x2", "a=1:9:+0", "a=1:999999"):
        with pytest.raises(UsageError, match="--vary"):
            parse_varied(text)
    with pytest.raises(UsageError, match="given twice"):
        grid_of([parse_varied("a=1"), parse_varied("a=2")])
    with pytest.raises(UsageError, match="100,000,000 variants"):
        grid_of([parse_varied(f"{name}=1:100") for name in "abcd"])


def test_the_front_is_what_no_other_result_beats() -> None:
    goals = parse_goals("min steps, max budget_use")
    points = [(5, 0.5), (4, 0.4), (6, 0.9), (6, 0.8), (4, 0.4), (None, 1.0)]
    rows: list[dict[str, Any]] = [{"steps": steps, "budget_use": use} for steps, use in points]
    assert pareto_front(rows, goals) == [1, 4, 0, 2]
    assert pareto_front(rows, parse_goals("max budget_use")) == [5]
    conditions = parse_conditions("steps <= 5 and budget_use > 0.4")
    assert [all(c.holds(row) for c in conditions) for row in rows] == [
        True,
        False,
        False,
        False,
        False,
        False,
    ]
    for text in ("steps", "min", "min speed", "most steps"):
        with pytest.raises(UsageError, match="no goal"):
            parse_goals(text)
    for text in ("steps", "steps ~ 3", "speed < 3", "steps < x"):
        with pytest.raises(UsageError, match="no condition"):
            parse_conditions(text)


def swept(capsys: Captured, *options: str) -> tuple[int, dict[str, Any]]:
    code = main(["sweep", *options, "--json"])
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, result


def test_a_case_is_swept(case: str, capsys: Captured) -> None:
    vary = ["--vary", "max_num_seqs=2,4,8", "--vary", "max_num_batched_tokens=16,64,128", "-f", "original"]
    code, result = swept(capsys, case, *vary, "--subject-to", "exceeded = 0 and hangs = 0", "--jobs", "1")
    rows = {(row["max_num_seqs"], row["max_num_batched_tokens"]): row for row in result["rows"]}
    assert len(rows) == 9
    assert rows[8, 64]["exceeded"] > 0
    assert code == int(not result["best"])
    for row in result["best"]:
        assert row["exceeded"] == 0
    for (seqs, limit), row in rows.items():
        changed = f"x: formula=original, max_num_seqs={seqs}, max_num_batched_tokens={limit}"
        main(["simulate", case, "-w", changed, "--json"])
        (figures,) = json.loads(capsys.readouterr().out)["schedulers"]
        assert row["exceeded"] == figures["num_exceeded"]
        assert row["steps"] == figures["num_steps"]
        assert row["preempted"] == figures["num_preemptions"]


def test_one_process_and_several_agree(case: str, capsys: Captured) -> None:
    vary = [
        "--vary",
        "max_num_seqs=1:8",
        "--vary",
        "formula=pr7499,exact",
        "--goal",
        "min steps, max budget_use",
    ]
    one, several = (swept(capsys, case, *vary, "--jobs", jobs) for jobs in ("1", "3"))
    assert one == several
    assert len(one[1]["rows"]) == 16


def test_what_a_server_refuses_is_no_result(case: str, capsys: Captured) -> None:
    vary = ["--vary", "max_num_batched_tokens=8,64", "-f", "pr7499", "--jobs", "1"]
    _, result = swept(capsys, case, *vary)
    first, second = result["rows"]
    assert "max_num_batched_tokens 8 is less than" in first["refused"]
    assert second["refused"] is None
    assert main(["sweep", case, *vary]) == 0
    said = capsys.readouterr().out
    assert "1 allowed, 1 refused" in said
    assert "recommend (the best by steps): --max-num-batched-tokens 64" in said
    assert "max_num_batched_tokens=8: refused, FastDeploy would not start" in said


def test_results_are_a_table_of_a_file(case: str, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "sweep.duckdb"
    options = ["sweep", case, "--vary", "max_num_seqs=2,4", "-f", "exact", "--jobs", "1", "-o", str(out)]
    assert main(options) == 0
    with duckdb.connect(str(out), read_only=True) as db:
        rows = db.sql("SELECT max_num_seqs, steps, allowed, best FROM sweep ORDER BY 1").fetchall()
    assert [row[0] for row in rows] == [2, 4]
    assert [row[2] for row in rows] == [True, True]
    assert sum(row[3] for row in rows) == 1
    capsys.readouterr()
    query = "SELECT max_num_seqs, best FROM sweep ORDER BY 1"
    assert main(["sql", str(out), query, "--format", "json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["max_num_seqs"] for line in lines] == [2, 4]
    assert main(["sql", str(out), "FROM step"]) == 2
    assert "sweep" in capsys.readouterr().err
    assert main(["info", str(out)]) == 3
    assert "is no trace" in capsys.readouterr().err
    assert main(options) == 2
    assert "is there already" in capsys.readouterr().err


def test_a_trace_is_swept_by_time(trace: Path, capsys: Captured) -> None:
    vary = ["--vary", "max_num_seqs=4,8", "-f", "pr7499", "--jobs", "1", "--arrivals", "steps"]
    code, result = swept(capsys, str(trace), *vary, "--subject-to", "exceeded = 0")
    assert code == 0
    assert [row["exceeded"] for row in result["rows"]] == [0, 0]
    assert all(row["steps"] > 0 for row in result["rows"])


def test_a_time_may_have_a_unit() -> None:
    bounds = [
        c.bound
        for c in parse_conditions("ttft_p95 < 300ms and itl_p50 <= 0.05 s, latency_p99 < 900us and steps < 3")
    ]
    assert bounds == [300, 50, 0.9, 3]
    for text in ("steps < 3ms", "ttft_p95 < 3 min", "ttft_p95 < ms"):
        with pytest.raises(UsageError, match="is no condition"):
            parse_conditions(text)


def test_the_time_model_is_known_where_other_processes_ran_the_replays(trace: Path) -> None:
    """The recommendation is written by a process that may have run no replay itself."""
    worker = SweepWorker(SweepSource(trace, None, {"formula": "pr7499"}, None, None, sys.executable))
    assert worker.timing is None
    worker.time_model({"max_num_seqs": 8})
    assert worker.timing is not None


def test_nothing_allowed_is_said(case: str, capsys: Captured) -> None:
    options = ["sweep", case, "--vary", "max_num_seqs=2,4", "-f", "exact", "--jobs", "1"]
    assert main([*options, "--subject-to", "steps < 1"]) == 1
    assert "no variant is allowed" in capsys.readouterr().out
    assert main([*options, "--goal", "min ttft_p95"]) == 1
    assert "ttft_p95 is known of no variant" in capsys.readouterr().out


def test_two_goals_are_drawn(case: str, capsys: Captured) -> None:
    options = ["sweep", case, "--vary", "max_num_seqs=1,2,4,8", "-f", "exact", "--jobs", "1"]
    assert main([*options, "--goal", "min steps, min peak_tokens"]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "steps to the right, peak_tokens upwards" in said
    assert "recommend (the best by steps): --max-num-seqs" in said


def test_a_recommendation_says_what_it_costs_and_what_decided(case: str, capsys: Captured) -> None:
    vary = ["--vary", "max_num_seqs=2,4,8", "--vary", "max_num_batched_tokens=64,128", "-f", "exact"]
    code, result = swept(capsys, case, *vary, "--subject-to", "exceeded = 0", "--jobs", "1")
    assert code == 0
    told = result["recommend"]
    assert told["flags"] == "--max-num-seqs 8 --max-num-batched-tokens 128"
    assert (told["recorded"]["max_num_seqs"], told["recorded"]["max_num_batched_tokens"]) == (8, 64)
    assert told["recorded"]["steps"] > told["best"]["steps"]
    assert "peak_tokens" in told["costs"]
    assert "steps" not in told["costs"]
    assert told["time_model"] is None
    beside = {(neighbour["setting"], neighbour["value"]): neighbour for neighbour in told["neighbours"]}
    assert set(beside) == {("max_num_seqs", 4), ("max_num_batched_tokens", 64)}
    parting = beside["max_num_seqs", 4]["parting"]
    assert parting["not_admitted"][1] == "slots"
    assert {name: values for name, *values in parting["differing"]}["num_running"][1] == 4
    assert main(["sweep", case, *vary, "--jobs", "1"]) == 0
    said = capsys.readouterr().out
    assert f"they part at step {parting['step']}" in said
    assert "max_num_seqs=4: no more is admitted: all sequences are taken" in said
    assert "recorded settings: --max-num-seqs 8 --max-num-batched-tokens 64" in said


GRID = ["--vary", "max_num_seqs=1:8", "--vary", "max_num_batched_tokens=48:240:+8", "-f", "exact"]
GUIDED = [*GRID, "--runs", "40", "--goal", "min steps", "--subject-to", "exceeded = 0 and peak_tokens <= 160"]


def test_a_large_grid_is_searched_and_the_same_seed_chooses_the_same(case: str, capsys: Captured) -> None:
    code, found = swept(capsys, case, *GUIDED, "--jobs", "1")
    assert code == 0
    assert len(found["rows"]) == len({tuple(row.values())[:2] for row in found["rows"]}) == 40
    assert swept(capsys, case, *GUIDED, "--jobs", "2") == (code, found)
    _, whole = swept(
        capsys, case, *GRID, "--subject-to", "exceeded = 0 and peak_tokens <= 160", "--jobs", "1"
    )
    assert len(whole["rows"]) == 200
    assert found["best"][0]["steps"] == whole["best"][0]["steps"]
    _, other = swept(capsys, case, *GUIDED, "--jobs", "1", "--seed", "3")
    assert other["rows"] != found["rows"]


def test_a_search_that_was_cut_off_goes_on(case: str, tmp_path: Path, capsys: Captured) -> None:
    state = tmp_path / "state.jsonl"
    options = [*GUIDED, "--jobs", "1"]
    _, whole = swept(capsys, case, *options, "--state", str(state))
    lines = state.read_text().splitlines(keepends=True)
    assert len(lines) == 41
    state.write_text("".join(lines[:20]) + lines[20][:9])
    _, again = swept(capsys, case, *options, "--state", str(state))
    assert again == whole
    kept = state.read_text().splitlines()
    assert len(kept) == 42, "the line that was cut off, and all results"
    assert swept(capsys, case, *options, "--state", str(state))[1] == whole
    assert state.read_text().splitlines() == kept, "nothing is computed again"
    _, grid = swept(capsys, case, "--vary", "max_num_seqs=2,4", "-f", "exact", "--jobs", "1")
    options = ["--vary", "max_num_seqs=2,4", "-f", "exact", "--jobs", "1", "--state", str(state)]
    assert swept(capsys, case, *options)[1] == grid
    assert main(["sweep", case, *options, "--policy", "release_2_6"]) == 2
    assert "state of another sweep" in capsys.readouterr().err


def test_without_optuna_a_large_grid_is_refused(
    case: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(["sweep", case, *GUIDED]) == 2
    assert "fdtrace[search]" in capsys.readouterr().err
