"""`fdtrace falsify` and `fdtrace shrink`: what they print, write and return; what the real code says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fdtrace.cli import main
from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.workload.from_case import workload_from_case
from fdtrace.searching.search_options import refuse_small_cache
from tests.fdtrace.test_schedulers import OPTIONS, real, versions

__all__ = ["versions"]

Captured = pytest.CaptureFixture[str]
CASES = Path(__file__).parent.parent / "data" / "cases"


def test_a_fault_is_found_saved_and_seen(tmp_path: Path, capsys: Captured) -> None:
    small = tmp_path / "small.json"
    assert main(["falsify", "-f", "original", "--find", "exceeded", "--runs", "500", "-o", str(small)]) == 1
    said = capsys.readouterr().out
    assert said.startswith("original: exceeded, after ")
    assert "budget: max_num_batched_tokens = " in said
    assert f"to see it: fdtrace simulate {small} -f original" in said
    assert "the same case under" in said
    main(["simulate", str(small), "-f", "original", "--json"])
    (shown,) = json.loads(capsys.readouterr().out)["schedulers"]
    assert shown["num_exceeded"] > 0
    assert shown["refused_by_fastdeploy"] == []


def test_without_an_output_the_case_goes_to_stdout(capsys: Captured) -> None:
    assert main(["falsify", "-f", "original", "--find", "exceeded", "--runs", "500"]) == 1
    text = capsys.readouterr().out
    case = json.loads(text[text.index("\n{") :])
    assert len(case["requests"]) <= 6


def test_nothing_found_says_what_was_tried(capsys: Captured) -> None:
    assert main(["falsify", "-f", "pr7623", "--find", "exceeded", "--runs", "60"]) == 0
    said = capsys.readouterr().out
    assert "nothing found in" in said
    assert "That is no proof" in said
    assert "max_num_seqs 1 to" in said
    assert "safe" not in said
    assert main(["falsify", "-f", "pr7623", "--find", "exceeded", "--runs", "60", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["found"] == []
    assert told["covered"]["num_runs"] + told["covered"]["num_refused"] == 60


def test_a_users_expression_and_fixed_settings(tmp_path: Path, capsys: Captured) -> None:
    small = tmp_path / "small.json"
    variant = (
        "mine: formula=max_num_batched_tokens - num_running_decodes, max_num_seqs=3, FD_ENC_DEC_BLOCK_NUM=2"
    )
    options = ["falsify", "-w", variant, "--find", "exceeded", "--runs", "2000", "-o", str(small)]
    assert main(options) == 1
    said = capsys.readouterr().out
    case = json.loads(small.read_text())
    assert case["max_num_seqs"] == 3
    assert case["env"] == {"FD_ENC_DEC_BLOCK_NUM": 2}
    shown = said[said.index("-f ") + 3 :].splitlines()[0].strip("'")
    main(["simulate", str(small), "-f", shown, "--json"])
    (figures,) = json.loads(capsys.readouterr().out)["schedulers"]
    assert figures["num_exceeded"] > 0


def test_a_search_goes_on_from_its_state(tmp_path: Path, capsys: Captured) -> None:
    state = tmp_path / "state.json"
    options = ["falsify", "-f", "pr7623", "--find", "exceeded", "--runs", "40", "--state", str(state)]
    assert main(options) == 0
    assert json.loads(state.read_text())["next_run"] == 40
    assert main(options) == 0
    assert json.loads(state.read_text())["next_run"] == 80
    assert "going on after 40" in capsys.readouterr().err
    assert main([*options, "--seed", "5"]) == 2
    assert "state of another search" in capsys.readouterr().err


@pytest.mark.slow
def test_any_number_of_processes_finds_the_same_of_a_formula_in_a_file(
    tmp_path: Path, capsys: Captured
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from fdtrace.replayer import Formula\n\n\nclass Mine(Formula):\n    name = 'mine'\n\n"
        "    def budget(self, v):\n        return v.max_num_batched_tokens - v.num_running_decodes\n"
    )
    options = ["falsify", "-f", f"{file}:Mine", "--find", "exceeded", "--all", "--runs", "700", "--json"]
    told = []
    for jobs in ("1", "2"):
        assert main([*options, "--jobs", jobs]) == 1
        result = json.loads(capsys.readouterr().out)
        told.append(([fault["case"] for fault in result["found"]], result["covered"]))
    assert told[0] == told[1]
    assert told[0][1]["num_runs"] + told[0][1]["num_refused"] == 700
    assert main([*options, "--jobs", "0"]) == 2
    assert "--jobs is 0" in capsys.readouterr().err


@pytest.mark.slow
def test_all_tells_each_cause_once(capsys: Captured) -> None:
    assert main(["falsify", "-f", "pr7499", "--find", "hang,fails", "--runs", "3000", "--all", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["found"]
    causes = [fault["text"].partition(": ")[2].partition(" (")[0] for fault in found]
    assert len(found) >= 2
    assert len(set(causes)) == len(causes)
    assert all(len(fault["case"]["requests"]) <= 8 for fault in found)


def test_a_case_shrinks(tmp_path: Path, capsys: Captured) -> None:
    small = tmp_path / "small.json"
    source = str(CASES / "full_reservation.json")
    assert main(["shrink", source, "-f", "pr7499", "-o", str(small)]) == 1
    said = capsys.readouterr().out
    assert "pr7499: hang, shrunk from 40 requests" in said
    assert "the budget is 0" in said
    assert len(json.loads(small.read_text())["requests"]) <= 6
    assert main(["simulate", str(small), "-f", "pr7499"]) == 1
    capsys.readouterr()
    assert main(["shrink", source, "-f", "exact", "--keep", "exceeded"]) == 0
    assert "shows none of these: exceeded" in capsys.readouterr().out


def test_a_trace_shrinks(trace: Path, tmp_path: Path, capsys: Captured) -> None:
    small = tmp_path / "small.json"
    assert main(["shrink", str(trace), "-f", "original", "--keep", "exceeded", "-o", str(small)]) == 1
    assert "original: exceeded, shrunk from" in capsys.readouterr().out
    assert len(json.loads(small.read_text())["requests"]) <= 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["falsify"], "no formula to search"),
        (["falsify", "-f", "original", "-w", "x: formula=exact, max_num_seqs=3"], "both -f and -w"),
        (["falsify", "-f", "vllm_static"], "cannot be used with the model of FastDeploy's scheduler"),
        (["falsify", "-f", "original", "--seconds", "0"], "--seconds is 0"),
        (["falsify", "-f", "original", "--runs", "0"], "--runs is 0"),
        (["falsify", "-f", "original", "--find", "x"], "there is no fault 'x'"),
        (["falsify", "-f", "original", "--like", "none.json"], "cannot be read"),
        (["falsify", "-w", "x: formula=exact, seqs=3"], "no setting 'seqs'"),
        (["shrink", "none.duckdb", "-f", "original"], "cannot be read"),
    ],
)
def test_wrong_use_is_said(options: list[str], words: str, capsys: Captured) -> None:
    assert main(options) == 2
    assert words in capsys.readouterr().err


def test_a_cache_that_vllm_would_not_start_with_is_refused() -> None:
    sizes = {"max_num_batched_tokens": 64, "max_num_seqs": 2, "block_size": 16, "max_model_len": 50}
    requests = [{"prompt": 9, "output": 3}]
    refuse_small_cache(workload_from_case({**sizes, "num_blocks": 5, "requests": requests}))
    with pytest.raises(UsageError, match="num_blocks 4 is less than 5"):
        refuse_small_cache(workload_from_case({**sizes, "num_blocks": 4, "requests": requests}))


KNOWN = {
    "original": (["--find", "exceeded"], ["--find", "livelock", "--cause", "preempts itself"]),
    "pr7438": (["--find", "exceeded"], ["--find", "livelock", "--cause", "preempts itself"]),
    "pr7499": (["--find", "hang", "--cause", "the budget is", "--no-variables"],),
    "pr7623": (["--find", "hang", "--cause", "the budget is", "--no-variables"],),
    "release_2_6": (
        ["--find", "hang", "--cause", "the budget is", "--no-variables"],
        ["--find", "held", "--role", "decode"],
    ),
}


@real
@pytest.mark.slow
def test_the_real_code_shows_what_the_search_found_in_the_model(
    versions: list[str], tmp_path: Path, capsys: Captured
) -> None:
    for i, options in enumerate(KNOWN[versions[0]]):
        small = tmp_path / f"small{i}.json"
        found = [
            "falsify",
            "-f",
            versions[0],
            *options,
            "--runs",
            "20000",
            "-o",
            str(small),
            "--json",
            *OPTIONS,
        ]
        assert main(found) == 1
        (fault,) = json.loads(capsys.readouterr().out)["found"]
        assert fault["not_shown_by"] == []
        assert all(text.startswith("shows it too, at the same step") for text in fault["real"].values())
        assert main(["simulate", str(small), "--json", *OPTIONS]) == int(fault["kind"] != "exceeded")
        (shown,) = json.loads(capsys.readouterr().out)["schedulers"]
        assert shown["num_exceeded"] > 0 or shown["hang"] is not None


@real
@pytest.mark.slow
def test_what_the_real_code_does_not_show_is_a_fault_of_the_model(
    versions: list[str], capsys: Captured
) -> None:
    """A formula that the checkout does not have."""
    mine = "mine: max_num_batched_tokens + 7 - num_running_decodes * (num_draft_tokens + 1)"
    if versions[0] in ("original", "pr7438"):
        pytest.skip("this version exceeds the limit itself")
    options = ["falsify", "-f", mine, "--find", "exceeded", "--runs", "2000", "--json", *OPTIONS]
    assert main(options) == 1
    (fault,) = json.loads(capsys.readouterr().out)["found"]
    assert len(fault["not_shown_by"]) == 1
    assert all("fault of the model" in text for text in fault["real"].values())
