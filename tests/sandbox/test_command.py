"""`python -m fdtrace.sandbox` as a process: what it prints, what it logs, how it ends."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fdtrace.sandbox import command as sandbox
from fdtrace.sandbox.__main__ import main

pytestmark = [
    pytest.mark.skipif(
        find_spec("paddle") is None, reason="the sandbox engine needs Paddle: pip install 'fdtrace[sandbox]'"
    ),
    pytest.mark.xdist_group("paddle"),
]

ROOT = Path(__file__).parents[2]
SUMS = {
    "tokens": "num_tokens",
    "prefill_tokens": "num_prefill_tokens",
    "decode_tokens": "num_decode_tokens",
    "draft_tokens": "num_draft_tokens",
    "accepted_tokens": "num_accepted_tokens",
    "exceeded_steps": "exceeded",
    "preemptions": "num_preempted",
    "stalls": "num_stalled",
}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fdtrace.sandbox", "--device", "cpu", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=900, env=environment(), check=False
    )


def run_here(*arguments: str) -> int:
    """The same in this process, which has imported Paddle already."""
    parser = argparse.ArgumentParser()
    sandbox.add_arguments(parser)
    return sandbox.run(parser.parse_args(["--device", "cpu", *arguments]))


def steps_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_counts_equal_the_sums_of_the_step_log(tmp_path: Path) -> None:
    log = tmp_path / "steps.jsonl"
    result = run("--steps", "60", "--backlog", "4", "--log-steps", str(log))
    assert result.returncode == 0, result.stderr
    ready, last = result.stdout.splitlines()  # and nothing else
    assert ready.split()[0] == "ready"
    assert int(ready.split()[1]) > 0
    counts, steps = json.loads(last), steps_of(log)
    assert counts["steps"] == len(steps) == 60
    assert [step["step"] for step in steps] == list(range(60))
    assert {name: sum(step[column] for step in steps) for name, column in SUMS.items()} == {
        name: counts[name] for name in SUMS
    }
    assert counts["peak_tokens"] == max(step["num_tokens"] for step in steps)
    assert counts["exceeded_steps"] == sum(step["num_tokens"] > 256 for step in steps) > 0
    assert 0 < counts["accepted_tokens"] < counts["draft_tokens"]
    assert counts["hang"] is None
    for step in steps:
        assert step["num_tokens"] == sum(row[2] for row in step["rows"])
        assert step["num_draft_tokens"] == 4 * sum(row[1] == "decode" for row in step["rows"])
        assert step["num_tokens"] == step["num_prefill_tokens"] + step["num_decode_tokens"]


def test_equal_seeds_give_equal_steps(tmp_path: Path, paddle: Any) -> None:
    logs = [tmp_path / name for name in ("a", "b", "c")]
    assert run("--steps", "30", "--seed", "7", "--log-steps", str(logs[0])).returncode == 0
    for log, seed in zip(logs[1:], "78", strict=True):
        assert run_here("--steps", "30", "--seed", seed, "--log-steps", str(log)) == 0
    first, second, other = (log.read_text() for log in logs)
    assert first == second != other


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_its_counts(tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "steps.jsonl"
    with subprocess.Popen(
        command("--log-steps", str(log), "--step-s", "0.01"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"ready {process.pid}\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert json.loads(out)["steps"] == len(steps_of(log))


def test_it_ends_with_its_load(paddle: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("--requests", "3", "--prompt", "20", "--output", "5:9") == 0
    counts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert counts["arrived"] == counts["finished"] == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--num-blocks", "4"], "max_model_len"),
        (["--max-num-seqs", "0"], "max_num_seqs is 0"),
        (["--formula", "no_such_formula"], "no_such_formula"),
        (["--policy", "no_such_policy"], "no_such_policy"),
        (["--prompt", "9:3"], "no range"),
        (["--prompt", "abc"], "argument --prompt: 'abc' is no range: write LOW:HIGH"),
        (["--output", "5:"], "argument --output: '5:' is no range"),
        (["--abort-after", "9:3"], "no range"),
        (["--step-s", "soon"], "argument --step-s: 'soon' is no number of seconds"),
        (["--arrival-gap", "nan"], "argument --arrival-gap: 'nan' is no number of steps"),
        (["--requests", "0"], "--requests is 0"),
        (["--env", "FD_ENC_DEC_BLOCKS_NUM=3"], "FD_ENC_DEC_BLOCK_NUM"),
        (["--env", "FD_ENC_DEC_BLOCK_NUM=-3"], "FD_ENC_DEC_BLOCK_NUM must be 0 or more"),
        (["--arrival-gap", "0"], "no request would ever arrive"),
        (["--env", "PATH=x"], "FD_NAME=VALUE"),
        (["--log-steps", "/no/such/folder/steps"], "cannot write"),
    ],
)
def test_wrong_use(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sandbox", "--device", "cpu", *arguments, "--steps", "1"])
    assert exit_code(main) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert said.out == ""


def exit_code(run: Callable[[], int]) -> Any:
    """What a process that runs this would end with: argparse raises it."""
    try:
        return run()
    except SystemExit as ended:
        return ended.code


def test_wrong_use_ends_the_process() -> None:
    result = run("--max-num-seqs", "0", "--steps", "1")
    assert result.returncode == 2
    assert "max_num_seqs is 0" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_paddle(tmp_path: Path) -> None:
    (tmp_path / "paddle.py").write_text("raise ImportError('no paddle here')\n")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    result = subprocess.run(
        command("--steps", "1"), capture_output=True, text=True, timeout=900, env=env, check=False
    )
    assert result.returncode == 3
    assert "pip install 'fdtrace[sandbox]'" in result.stderr
    assert "Traceback" not in result.stderr
