"""`fdtrace sweep` over several traces and cases: each variant on all of them, one result of theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fdtrace.cli import main
from fdtrace.replayer.search.sweep_combined import combined_row
from fdtrace.replayer.search.sweep_grid import SweepRow, SweepValue
from tests.fdtrace.test_sweep import CASE

Captured = pytest.CaptureFixture[str]
VARY = ["--vary", "max_num_seqs=2,4,8", "--vary", "formula=original,exact"]


def write_case(path: Path, prompt: int) -> str:
    requests = [
        {"id": f"r{i}", "arrival": i, "prompt": prompt, "output": 40, "accepts": [1]} for i in range(12)
    ]
    path.write_text(json.dumps({**CASE, "requests": requests}))
    return str(path)


@pytest.fixture
def cases(tmp_path: Path) -> list[str]:
    return [write_case(tmp_path / "short.json", 20), write_case(tmp_path / "long.json", 90)]


def swept(capsys: Captured, *arguments: str) -> dict[str, Any]:
    assert main(["sweep", *arguments, *VARY, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_counts_are_added_and_of_others_it_is_the_worst() -> None:
    settings: dict[str, SweepValue] = {"max_num_seqs": 4}
    rows: list[SweepRow] = [
        {**settings, "exceeded": 2, "peak_tokens": 90, "budget_use": 0.5, "ttft_p95": 7.5, "refused": None},
        {**settings, "exceeded": 1, "peak_tokens": 80, "budget_use": 0.7, "ttft_p95": None, "refused": None},
    ]
    figures = {"exceeded": 3, "peak_tokens": 90, "budget_use": 0.5, "ttft_p95": None}
    assert combined_row(settings, ["a", "b"], rows) == {**settings, **figures, "refused": None}
    refused: SweepRow = {**settings, "refused": "too few"}
    assert combined_row(settings, ["a", "b"], [rows[0], refused]) == {**settings, "refused": "b: too few"}


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_each_variant_runs_on_every_source(cases: list[str], capsys: Captured, jobs: str) -> None:
    alone = [swept(capsys, case, "--jobs", "1")["rows"] for case in cases]
    both = swept(capsys, *cases, "--jobs", jobs)["rows"]
    assert [(row["max_num_seqs"], row["formula"]) for row in both] == [
        (row["max_num_seqs"], row["formula"]) for row in alone[0]
    ]
    for row, first, second in zip(both, *alone, strict=True):
        assert row["steps"] == first["steps"] + second["steps"]
        assert row["exceeded"] == first["exceeded"] + second["exceeded"]
        assert row["peak_tokens"] == max(first["peak_tokens"], second["peak_tokens"])
        assert row["budget_use"] == min(first["budget_use"], second["budget_use"])
    assert any(row["exceeded"] for row in both)


def test_the_report_says_how_they_are_combined(cases: list[str], capsys: Captured) -> None:
    assert main(["sweep", *cases, *VARY, "--jobs", "1", "--subject-to", "exceeded = 0"]) == 0
    said = capsys.readouterr().out
    assert "each on 2 sources: counts are added, of other figures it is the worst" in said
    assert "recommend (the best by steps): --max-num-seqs" in said
    assert "what decided" in said
    assert "they part" not in said, "the steps of two sources are no one history"


def test_its_state_belongs_to_these_sources(cases: list[str], tmp_path: Path, capsys: Captured) -> None:
    state = ["--state", str(tmp_path / "state")]
    first = swept(capsys, *cases, *state)
    assert swept(capsys, *cases, *state) == first
    assert main(["sweep", cases[0], *VARY, *state]) == 2
    assert "is the state of another sweep" in capsys.readouterr().err


def test_traces_of_a_lake_are_chosen_of_a_lake(cases: list[str], capsys: Captured) -> None:
    assert main(["sweep", *cases, *VARY, "--newest", "2"]) == 2
    assert "choose traces of a lake" in capsys.readouterr().err
