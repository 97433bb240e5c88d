"""Waits as the commands and the library show them, and the view `waiting`, which is the same by SQL."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest

import fdtrace
from fdtrace.cli import main
from tests.made_once import made_once

CASES = Path(__file__).parents[1] / "data" / "cases"
RANDOM = CASES.parent / "random"
Captured = pytest.CaptureFixture[str]

SAME = ("request_id", "kind", "since_step", "until_step", "num_steps", "not_admitted", "num_discarded_tokens")
"""What the view takes from the same columns as the figures; `behind` it takes from the recorded head."""


def view_of(trace: Path) -> list[dict[str, Any]]:
    """The rows of the view."""
    with fdtrace.open(trace) as opened:
        relation = opened.sql("FROM waiting")
        return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


def key_of(row: dict[str, Any], names: tuple[str, ...] = SAME) -> tuple[str, ...]:
    """Values to compare. A column of numbers with a NULL holds floats in the library."""
    values = (row[name] for name in names)
    return tuple(repr(int(value) if isinstance(value, float) else value) for value in values)


def write_simulated(workload: Path, trace: Path) -> None:
    """Write what `original` makes of a workload to a trace."""
    fdtrace.simulate(workload, "original")["original"].write(trace)


@pytest.fixture
def simulated(shared: Path) -> Callable[[str], Path]:
    """The trace of a workload of the lab under `original`, to be read only."""

    def of(name: str) -> Path:
        (path,) = [*CASES.glob(f"{name}.json"), *RANDOM.glob(f"{name}.json")]
        return made_once(shared / f"simulated-{name}.duckdb", partial(write_simulated, path))

    return of


@pytest.fixture(params=["preemptions", "tight_blocks", "decode0", "recorded"])
def any_trace(request: pytest.FixtureRequest, trace: Path, simulated: Callable[[str], Path]) -> Path:
    """Traces of simulations, and of a recorded engine."""
    return trace if request.param == "recorded" else simulated(request.param)


def test_the_view_has_the_waits_of_the_recording(any_trace: Path) -> None:
    found = fdtrace.replay(any_trace, "original")["recorded"].waits.each.rows()
    rows = view_of(any_trace)
    assert sorted(map(key_of, rows)) == sorted(map(key_of, found))
    assert len(rows) > 10
    by_start = {key_of(row, ("request_id", "kind", "since_step")): row for row in rows}
    for wait in found:
        row = by_start[key_of(wait, ("request_id", "kind", "since_step"))]
        assert (row["wait_us"] is None) == (wait["us"] is None)
        if wait["us"] is not None:
            assert abs(row["wait_us"] - wait["us"]) <= 1


def test_a_request_found_running_waits_to_go_on(tmp_path: Path) -> None:
    """A recording that begins in the middle, and a decode and a prefill left out of its first steps."""
    requests = [{"id": f"r{i}", "arrival": 0, "prompt": 90, "output": 30} for i in range(6)]
    sizes = {"max_num_batched_tokens": 64, "max_num_seqs": 3, "num_blocks": 64}
    trace = tmp_path / "t.duckdb"
    fdtrace.simulate({**sizes, "requests": requests}, "original")["original"].write(trace)
    with duckdb.connect(str(trace)) as db:
        left_out = "step < 4 OR (step < 6 AND request IN (0, 1))"
        for table in ("step", "event"):
            db.execute(f"DELETE FROM {table} WHERE step < 4")
        db.execute(f"DELETE FROM step_request WHERE {left_out}")
        db.execute("UPDATE request SET arrived_step = NULL, arrived_at = NULL")
        first = "SELECT kind FROM step_request WHERE request = $1 ORDER BY step LIMIT 1"
        kinds = [db.execute(first, [number]).fetchall()[0][0] for number in (0, 1)]
    assert kinds == ["decode", "decode"]
    rows = view_of(trace)
    found = fdtrace.open(trace).recording()
    waits = fdtrace.replay(found, as_recorded=True, formulas="original")["recorded"].waits.each.rows()
    assert sorted(map(key_of, rows)) == sorted(map(key_of, waits))
    first_waits = {
        row["request_id"]: (row["kind"], row["num_steps"]) for row in rows if row["since_step"] == 4
    }
    assert first_waits["r0"] == first_waits["r1"] == ("decode", 2)
    assert first_waits["r3"][0] == "queued"


@pytest.mark.parametrize("name", ["preemptions", "tight_blocks"])
def test_the_head_that_is_derived_is_the_recorded_one(name: str, simulated: Callable[[str], Path]) -> None:
    """But in the step that preempts: FastDeploy's request is in the queue again only after it."""
    trace = simulated(name)
    found = fdtrace.replay(trace, "original")["recorded"].waits
    derived = {
        (row["request_id"], row["since_step"]): row["num_head_steps"]
        for row in found.each.rows()
        if row["num_head_steps"] is not None
    }
    recorded = {
        (row["request_id"], row["since_step"]): row["num_head_steps"]
        for row in view_of(trace)
        if row["num_head_steps"] is not None
    }
    assert derived.keys() == recorded.keys()
    off = sum(abs(steps - recorded[key]) for key, steps in derived.items())
    assert off <= 2 * found.totals.num_restarts
    assert sum(derived.values()) > 10 * off


def test_the_report_puts_the_variants_side_by_side(trace: Path, capsys: Captured) -> None:
    options = ["-f", "original", "-w", "few: max_num_seqs=2, formula=original, arrivals=steps", "--waits"]
    assert main(["replay", str(trace), *options]) == 0
    said = capsys.readouterr().out
    for name in ("recorded", "original", "few"):
        assert f"\n{name}" in said.split("waits", 1)[1]
    assert "few: the head of the queue was not admitted in" in said
    assert main(["replay", str(trace), *options, "--json"]) == 0
    formulas = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)["formulas"]}
    totals = {name: entry["waits"]["totals"] for name, entry in formulas.items()}
    assert totals["recorded"]["num_queued"] == totals["original"]["num_queued"]
    assert totals["few"]["max_queued_steps"] > totals["original"]["max_queued_steps"]
    assert totals["few"]["steps_blocked"]["slots"] > 0
    longest = formulas["few"]["waits"]["requests"][0]
    assert longest["queued_steps"] == totals["few"]["max_queued_steps"]
    assert main(["replay", str(trace), "-f", "original", "--json"]) == 0
    assert "waits" not in json.loads(capsys.readouterr().out)["formulas"][0]


def test_a_replay_under_what_recorded_waits_as_the_recording(simulated: Callable[[str], Path]) -> None:
    runs = fdtrace.replay(simulated("preemptions"), "original")
    assert runs["recorded"].waits.totals.num_restarts > 0
    rows = {row["name"]: row for row in runs.waits()}
    for name in (
        "num_queued",
        "max_queued_steps",
        "num_restarts",
        "num_discarded_tokens",
        "num_steps_behind",
    ):
        assert rows["recorded"][name] == rows["original"][name], name


def test_an_as_recorded_run_has_none(trace: Path, capsys: Captured) -> None:
    runs = fdtrace.replay(trace, "original", as_recorded=True)
    with pytest.raises(fdtrace.UsageError, match="are not known"):
        _ = runs["original"].waits
    assert [row["name"] for row in runs.waits()] == ["recorded"]
    assert main(["replay", str(trace), "-f", "original", "--as-recorded", "--waits"]) == 0
    assert "original: no waits" in capsys.readouterr().out


def test_restarts_are_the_recorded_preemptions(simulated: Callable[[str], Path]) -> None:
    trace = simulated("preemptions")
    totals = fdtrace.replay(trace, "original")["recorded"].waits.totals
    with duckdb.connect(str(trace), read_only=True) as db:
        ((count, tokens),) = db.execute("SELECT count(*), sum(discarded_tokens) FROM preemption").fetchall()
    assert (totals.num_restarts, totals.num_discarded_tokens) == (count, tokens)
    assert count > 10


def test_a_simulation_tells_its_waits(tmp_path: Path, capsys: Captured) -> None:
    """On stdout; on stderr where the lines of decisions take stdout."""
    workload = str(CASES / "tight_blocks.json")
    assert main(["simulate", workload, "-f", "original", "-f", "pr7499"]) == 0
    said = capsys.readouterr()
    assert "original: the head of the queue was not admitted in" in said.out
    assert main(["simulate", workload, "-f", "original"]) == 0
    alone = capsys.readouterr()
    assert [line[0] for line in alone.out.splitlines()] == ["{"] * len(alone.out.splitlines())
    assert "original: the head of the queue was not admitted in" in alone.err
    assert main(["simulate", workload, "-f", "original", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["schedulers"]
    totals = found["waits"]["totals"]
    run = fdtrace.simulate(workload, "original")["original"]
    assert totals["num_queued"] == run.waits.totals.num_queued > 0
    blocked = [line for line in run.decisions if line["waiting"]]
    assert sum(totals["steps_blocked"].values()) == len(blocked)


def test_a_hang_counts_the_waits_before_it(tmp_path: Path) -> None:
    """Requests that hold blocks and never join: how many, and how many blocks."""
    requests = [
        {"id": f"d{i}", "arrival": i, "prompt": 100, "output": 9, "join_after": 90_000} for i in range(6)
    ]
    sizes = {"max_num_batched_tokens": 64, "max_num_seqs": 8, "num_blocks": 30, "block_size": 16}
    run = fdtrace.simulate({**sizes, "role": "decode", "requests": requests, "max_steps": 400}, "original")[
        "original"
    ]
    assert "hold" in run.sentence
    totals, hung = run.waits.totals, run.decisions[-1]
    assert (totals.num_not_joined, totals.num_never_joined) == (3, 3)
    assert totals.max_blocks_not_joined == 30 - hung["free_blocks"]
    assert {row["kind"] for row in run.waits.each} == {"not_joined"}


def test_a_request_id_is_no_markup(tmp_path: Path, capsys: Captured) -> None:
    case = json.loads((CASES / "tight_blocks.json").read_text())
    for i, request in enumerate(case["requests"]):
        request["id"] = f"[bold]{i}[/bold]"
    workload = tmp_path / "w.json"
    workload.write_text(json.dumps(case))
    assert main(["simulate", str(workload), "-f", "original", "-o", str(tmp_path / "t.duckdb")]) == 0
    assert "[/bold] was the head for" in capsys.readouterr().out
    assert main(["replay", str(tmp_path / "t.duckdb"), "-f", "original", "--waits"]) == 0
    assert "[/bold] was the head for" in capsys.readouterr().out
