"""How a simulation ends, as `fdtrace simulate` says it: in the table, as JSON, and by the exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fdtrace.cli import main
from fdtrace.replayer import ORIGINAL, RELEASE_2_6, SchedulerConfig
from fdtrace.replayer.startup import refusals
from tests.fdtrace.test_simulate import VERSIONS, case, lines_of

Captured = pytest.CaptureFixture[str]

SIZES = {
    "max_num_seqs": 8,
    "num_blocks": 64,
    "block_size": 16,
    "max_num_batched_tokens": 128,
    "max_model_len": 512,
}
DONE = {**SIZES, "requests": [{"id": "a", "arrival": 0, "prompt": 20, "output": 4}]}
LIVELOCK = {**SIZES, "num_blocks": 8, "requests": [{"id": "big", "arrival": 0, "prompt": 200, "output": 5}]}
CUT = {**SIZES, "max_steps": 5, "requests": [{"id": "a", "arrival": 0, "prompt": 20, "output": 50}]}
FORMULAS = [option for version in VERSIONS for option in ("-f", version)]


def saved(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value))
    return str(path)


def rows_of(text: str) -> dict[str, list[str]]:
    lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if "|" in line]
    return {cells[0]: cells for cells in lines if cells[0]}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_hang_stands_in_table_json_and_exit_code(version: str, tmp_path: Path, capsys: Captured) -> None:
    file = saved(tmp_path / "w.json", LIVELOCK)
    assert main(["simulate", file, "-f", "exact", "-f", version]) == 1
    said = capsys.readouterr()
    assert rows_of(said.out)[version][-1].startswith("HANGS at")
    assert "needs 13 of 8 blocks" in said.err
    assert f"{version} hangs at step" in said.err
    assert "finished 0 of 1 requests" in said.err
    assert main(["simulate", file, "-f", version, "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)["schedulers"]
    assert "needs 13 of 8 blocks" in found["hang"]["cause"]
    assert (found["num_finished"], found["num_requests"], found["cut"]) == (0, 1, None)


def test_a_cut_stands_in_table_json_and_exit_code(tmp_path: Path, capsys: Captured) -> None:
    file = saved(tmp_path / "w.json", CUT)
    assert main(["simulate", file, *FORMULAS]) == 1
    said = capsys.readouterr()
    assert {cells[-1] for name, cells in rows_of(said.out).items() if name in VERSIONS} == {"CUT at 5"}
    assert "cut at step 5 by the limit of 5 steps, with 1 unfinished" in said.err
    assert main(["simulate", file, "-f", "original", "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)["schedulers"]
    assert found["cut"] == {"step": 5, "max_steps": 5, "num_unfinished": 1, "num_to_come": 0}
    assert main(["simulate", file, "-f", "original", "--max-steps", "60", "--json"]) == 0
    (whole,) = json.loads(capsys.readouterr().out)["schedulers"]
    assert (whole["cut"], whole["num_finished"], whole["num_steps"]) == (None, 1, 50)


def test_one_alone_says_how_it_ends_too(tmp_path: Path, capsys: Captured) -> None:
    assert main(["simulate", saved(tmp_path / "w.json", CUT), "-f", "original"]) == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 5
    assert "finished 0 of 1 requests" in said.err


def test_the_limit_grows_with_the_workload(tmp_path: Path, capsys: Captured) -> None:
    late = {**SIZES, "requests": [{"id": "a", "arrival": 25_000, "prompt": 40, "output": 30}]}
    assert main(["simulate", saved(tmp_path / "w.json", late), "-f", "original", "-f", "pr7499"]) == 0
    row = rows_of(capsys.readouterr().out)["original"]
    assert row[4:6] == ["25030", "1 of 1"]


def test_a_limit_that_makes_no_sense(capsys: Captured) -> None:
    assert main(["simulate", case("aborts"), "-f", "original", "--max-steps", "0"]) == 2
    assert "--max-steps is 0" in capsys.readouterr().err


def test_an_empty_workload_says_so(tmp_path: Path, capsys: Captured) -> None:
    assert main(["simulate", saved(tmp_path / "w.json", {**DONE, "requests": []}), "-f", "original"]) == 0
    said = capsys.readouterr()
    assert (said.out, "has no requests" in said.err) == ("", True)


def test_requests_that_are_aborted_are_not_counted_as_finished(tmp_path: Path, capsys: Captured) -> None:
    aborted = {**SIZES, "requests": [{"id": "a", "arrival": 0, "prompt": 20, "output": 90, "abort_after": 9}]}
    assert main(["simulate", saved(tmp_path / "w.json", aborted), "-f", "original", "-f", "pr7499"]) == 0
    said = capsys.readouterr()
    assert rows_of(said.out)["original"][5] == "0 of 1"
    assert "finished 0 of 1 requests (1 aborted)" in said.err


# What decided ------------------------------------------------------------------------------------------------


def test_lines_say_what_decided(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    main(["simulate", case("preemptions"), "-f", "release_2_6", "--decisions", str(out)])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    blocked = [line for line in lines if line["not_admitted"] == "blocks"]
    assert len(blocked) > 10
    for line in blocked:
        assert line["num_missing_blocks"] == line["num_needed_blocks"] - line["free_blocks"] > 0
        assert line["blocked"] is not None
        assert 0 <= line["num_reserved_blocks"] < line["num_needed_blocks"]
    assert all(0 < line["token_budget"] <= 512 for line in lines)
    assert {line["new_token_ratio"] for line in lines} == {None}  # this case switches it off
    main(["simulate", case("tight_blocks"), "-f", "release_2_6", "--decisions", str(out)])
    ratios = [json.loads(line)["new_token_ratio"] for line in out.read_text().splitlines()]
    assert ratios[0] == 0.7
    assert min(ratios) < 0.7


def test_lines_say_who_holds_blocks_without_having_joined(tmp_path: Path) -> None:
    request = {"id": "a", "arrival": 0, "prompt": 100, "output": 9, "join_after": 5}
    decode = {**SIZES, "num_blocks": 12, "role": "decode", "requests": [request, {**request, "id": "b"}]}
    out = tmp_path / "out.jsonl"
    assert (
        main(["simulate", saved(tmp_path / "w.json", decode), "-f", "original", "--decisions", str(out)]) == 0
    )
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["num_preallocated"] for line in lines[:6]] == [1, 1, 1, 1, 1, 0]
    assert [line["num_preallocated_blocks"] for line in lines[:6]] == [9, 9, 9, 9, 9, 0]
    assert {line["num_asking"] for line in lines[:5]} == {1}


# What FastDeploy refuses -------------------------------------------------------------------------------------


def config(**changes: Any) -> SchedulerConfig:
    sizes = {**SIZES, **changes}
    return SchedulerConfig(**sizes)


REFUSED = {
    "more sequences than tokens": (
        config(max_num_batched_tokens=7, block_size=4, num_blocks=200),
        "max_num_seqs 8",
        "FDConfig.check",
    ),
    "too many sequences": (
        config(max_num_seqs=600, max_num_batched_tokens=700),
        "more than 512",
        "FDConfig.check",
    ),
    "more tokens than sequences hold": (
        config(max_num_batched_tokens=5000),
        "max_model_len 512",
        "FDConfig.check",
    ),
    "less than a block": (config(max_num_batched_tokens=12), "block_size 16", "FDConfig.check"),
    "few blocks": (config(num_blocks=33), "num_blocks 33 is less than 34", "CacheConfig.postprocess"),
    "a short model": (
        config(max_model_len=15, block_size=4, max_num_batched_tokens=64),
        "less than 16",
        "check",
    ),
    "chunks of no power of 2": (config(split_kv_size=48), "no power of 2", "envs.py"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_fastdeploy_refuses_is_named_with_its_check(kind: str) -> None:
    refused, says, source = REFUSED[kind]
    (found,) = refusals(refused, "original", ORIGINAL)
    assert says in found.text
    assert source in found.source
    assert refusals(config(), "original", ORIGINAL) == []


def test_versions_ask_for_room_for_drafts_differently() -> None:
    plain = config(max_num_batched_tokens=16)
    tight = config(max_num_batched_tokens=15, block_size=4, num_blocks=200)
    assert refusals(plain, "pr7499", ORIGINAL) == []
    assert len(refusals(tight, "pr7499", ORIGINAL)) == 1  # K is 1 there also without a method
    assert refusals(tight, "pr7623", ORIGINAL) == []
    drafts = config(
        max_num_batched_tokens=31, block_size=4, num_blocks=200, num_speculative_tokens=3, spec_method="mtp"
    )
    assert refusals(drafts, "original", ORIGINAL) == []
    assert len(refusals(drafts, "pr7623", ORIGINAL)) == 1
    assert len(refusals(drafts, "mine", RELEASE_2_6)) == 1


def test_a_refusal_is_said_beside_the_figures(tmp_path: Path, capsys: Captured) -> None:
    file = saved(tmp_path / "w.json", {**DONE, "max_num_batched_tokens": 4})
    assert main(["simulate", file, "-f", "original", "-f", "release_2_6"]) == 0
    said = capsys.readouterr()
    assert rows_of(said.out)["original"][-1] == "refused"
    assert "FastDeploy refuses this under original, release_2_6: max_num_batched_tokens 4 is less" in said.err
    assert "`FDConfig.check`" in said.err


def test_a_prompt_that_only_a_server_refuses(tmp_path: Path, capsys: Captured) -> None:
    edge = {**DONE, "requests": [{"id": "a", "arrival": 0, "prompt": 511, "output": 1}]}
    assert main(["simulate", saved(tmp_path / "w.json", edge), "-f", "original", "-f", "pr7499"]) == 0
    assert "answered with 400 (`EngineClient.add_requests`" in capsys.readouterr().err


# Outputs -----------------------------------------------------------------------------------------------------


def test_decisions_never_overwrite_the_workload(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "w.json"
    text = saved(file, DONE)
    link = tmp_path / "link.json"
    link.symlink_to(file)
    before = file.read_text()
    for out in (file, link):
        assert main(["simulate", text, "-f", "original", "--decisions", str(out)]) == 2
        assert "is the workload itself" in capsys.readouterr().err
    (tmp_path / "w-original.json").write_text(before)
    derived = ["simulate", str(tmp_path / "w-original.json"), "-f", "original", "-f", "pr7499"]
    assert main([*derived, "--decisions", str(file)]) == 2
    assert file.read_text() == (tmp_path / "w-original.json").read_text() == before


def test_two_formulas_never_write_one_file(tmp_path: Path, capsys: Captured) -> None:
    checkout = tmp_path / "src"
    file = checkout / "fastdeploy" / "engine" / "sched" / "resource_manager_v1.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    both = ["-f", "fastdeploy-src: max_num_batched_tokens", "--scheduler", f"fastdeploy={checkout}"]
    out = tmp_path / "out.jsonl"
    assert main(["simulate", saved(tmp_path / "w.json", DONE), *both, "--decisions", str(out)]) == 2
    assert "would both go to" in capsys.readouterr().err
    assert list(tmp_path.glob("out*")) == []


def test_json_beside_decisions(tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "out.jsonl"
    assert main(["simulate", case("aborts"), "-f", "original", "--json", "--decisions", str(out)]) == 0
    (found,) = json.loads(capsys.readouterr().out)["schedulers"]
    assert found["num_steps"] == len(lines_of(out))
