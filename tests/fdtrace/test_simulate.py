"""`fdtrace simulate`: the lab's cases in, the real scheduler's decisions out; what it says of bad workloads."""

from __future__ import annotations

import gzip
import json
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from fdtrace.cli import main

DATA = Path(__file__).parent.parent / "data"
CASES = sorted(path.stem for path in (DATA / "cases").glob("*.json"))
VERSIONS = ("original", "pr7438", "pr7499", "pr7623", "release_2_6")

WHY = {
    *(
        "token_budget",
        "not_admitted",
        "blocked",
        "num_needed_blocks",
        "num_missing_blocks",
        "num_reserved_blocks",
    ),
    *("new_token_ratio", "num_asking", "num_preallocated", "num_preallocated_blocks"),
}
NOT_DONE = "full_reservation"
"""The case that hangs, or is cut at its limit of 600 steps."""

Captured = pytest.CaptureFixture[str]


def case(name: str) -> str:
    return str(DATA / "cases" / f"{name}.json")


def golden(name: str, version: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / "golden" / name / f"{version}.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def lines_of(path: Path) -> list[dict[str, Any]]:
    return golden_part(path.read_text())


def golden_part(text: str) -> list[dict[str, Any]]:
    """Lines of decisions without what decided, which the lab's lines do not hold."""
    lines = [json.loads(line) for line in text.splitlines()]
    return [{name: value for name, value in line.items() if name not in WHY} for line in lines]


# The scheduler's model is held to every case under every version in tests/replayer/test_golden.py.
@pytest.mark.parametrize(("name", "version"), [*zip(CASES, cycle(VERSIONS), strict=False)])
def test_decisions_are_those_of_the_real_scheduler(name: str, version: str, tmp_path: Path) -> None:
    out = tmp_path / "decisions.jsonl"
    assert main(["simulate", case(name), "-f", version, "--decisions", str(out)]) == (name == NOT_DONE)
    assert lines_of(out) == golden(name, version)


def test_a_policy_can_be_given_by_itself_and_beside_a_formula(tmp_path: Path, capsys: Captured) -> None:
    def decided(*options: str) -> str:
        assert main(["simulate", case("tight_blocks"), *options]) == 0
        return capsys.readouterr().out

    whole = decided("-f", "release_2_6")
    assert golden_part(whole) == golden("tight_blocks", "release_2_6")
    assert decided("--policy", "release_2_6") == whole
    assert decided("-f", "pr7623", "--policy", "release_2_6") == whole
    budget_alone = decided("-f", "release_2_6", "--policy", "original")
    assert golden_part(budget_alone) == golden("tight_blocks", "pr7623")


def test_several_are_compared_and_each_writes_its_own_file(tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "out.jsonl"
    mine = "mine: max_num_batched_tokens - num_running_decodes * (num_draft_tokens + 1)"
    options = ["-f", "pr7623", "-f", "original", "-f", mine, "--decisions", str(out)]
    assert main(["simulate", case("speculative"), *options]) == 0
    said = capsys.readouterr().out.split("\n\n")[0]  # the table of waits comes after it
    rows = {
        cells[0]: cells for cells in (line.replace("|", " ").split() for line in said.splitlines()) if cells
    }
    assert rows["original"][1:5] == ["126", "+184", "1208", "233"]
    assert rows["original"][-4:] == ["from", "step", "2", "done"]
    assert rows["mine"][1:5] == ["0", "-", "1024", "248"]
    assert rows["mine"][-2:] == ["equal", "done"]
    assert lines_of(tmp_path / "out-original.jsonl") == golden("speculative", "original")
    assert lines_of(tmp_path / "out-mine.jsonl") == golden("speculative", "pr7623")


def test_a_hang_is_told_beside_its_decisions(capsys: Captured) -> None:
    assert main(["simulate", case("full_reservation"), "-f", "pr7499"]) == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 600
    assert "pr7499 hangs at step 121: the budget is 0 with 16 requests decoding" in said.err


def small(**changes: Any) -> dict[str, Any]:
    request = {"id": "r0", "arrival": 0, "prompt": 10, "output": 3, "accepts": [1]}
    sizes = {"max_num_seqs": 2, "num_blocks": 600, "max_num_batched_tokens": 64, "num_speculative_tokens": 2}
    return {**sizes, "requests": [request], **changes}


BAD = {
    "text": ("no JSON at all", "is no JSON"),
    "a list": ("[]", "a workload is a JSON object"),
    "nothing": ("{}", "lacks `max_num_batched_tokens`"),
    "no requests": (json.dumps(small(requests=None)), "has no `requests`"),
    "a negative size": (json.dumps(small(num_blocks=-5)), "`num_blocks`"),
    "no blocks": (json.dumps(small(num_blocks=0)), "num_blocks must be at least 1"),
    "a word for a number": (json.dumps(small(max_num_seqs="many")), "`max_num_seqs` must be a whole number"),
    "a request of no tokens": (
        json.dumps(small(requests=[{"id": "a", "arrival": 0, "prompt": 0, "output": 1}])),
        "must be at least 1",
    ),
    "equal ids": (
        json.dumps(small(requests=[{"id": "a", "arrival": 0, "prompt": 1, "output": 1}] * 2)),
        "the same `id`",
    ),
    "env of the wrong kind": (json.dumps(small(env=[1])), "`env`"),
    "accepts of the wrong kind": (
        json.dumps(small(requests=[{"id": "a", "arrival": 0, "prompt": 1, "output": 1, "accepts": 3}])),
        "`requests[0].accepts` must be a list",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_workload_that_is_none_says_so(kind: str, tmp_path: Path, capsys: Captured) -> None:
    text, message = BAD[kind]
    path = tmp_path / "workload.json"
    path.write_text(text)
    assert main(["simulate", str(path), "-f", "pr7499"]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_what_cannot_be_read_or_written_or_chosen(tmp_path: Path, capsys: Captured) -> None:
    wrong = {
        "cannot be read": [str(tmp_path / "nowhere.json"), "-f", "pr7499"],
        "cannot be written": [case("aborts"), "-f", "pr7499", "--decisions", str(tmp_path / "no" / "out")],
        "no formula to schedule by": [case("aborts")],
        "there is no formula 'nosuch'": [case("aborts"), "-f", "nosuch"],
        "there is no policy 'newest'": [case("aborts"), "--policy", "newest"],
        "names no scheduler": [case("aborts"), "--scheduler", "sglang=/"],
        "is no checkout of fastdeploy": [case("aborts"), "--scheduler", f"fastdeploy={tmp_path}"],
    }
    for message, arguments in wrong.items():
        assert main(["simulate", *arguments]) == 2
        assert message in capsys.readouterr().err
