"""A trace that a stranger sent: no hang, no signal, no traceback, nothing raw, no file read or written."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fdtrace.cli import main
from tests.fdtrace import hostile
from tests.made_once import made_once
from tests.recorder.helpers import record_played

EVERYTHING = "FDTRACE_CORRUPTIONS" in os.environ
"""All commands on all traces, and so many damaged ones: FDTRACE_CORRUPTIONS=1000."""
CORRUPTIONS = int(os.environ.get("FDTRACE_CORRUPTIONS", "40"))
PARTS = 3
"""Tests that the traces made by hand are spread over."""
SECRET = "the victim's own words"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
PATIENCE = 240.0
"""Seconds that one command gets, however busy the machine is."""


@pytest.fixture(scope="session")
def good(shared: Path) -> Path:
    """A trace of 60 steps."""
    return made_once(shared / "played-60.duckdb", partial(record_played, 60))


def commands(path: Path, at: int) -> list[list[str]]:
    """What is run on the trace at a place: all where everything is asked for, else `info`, one that reads the whole
    recording, and on every third trace one that does not. Only the first two where `info` cannot open it.
    """
    info = ["info", str(path)]
    whole = [
        ["replay", str(path), "--report", "-f", "pr7499"],
        ["check", str(path), "-f", "original"],
        ["replay", str(path), "--report", "-f", "pr7499", "--as-recorded"],
    ]
    others = [
        ["sql", str(path), "SELECT * FROM exceeded LIMIT 3"],
        ["sql", str(path), "SELECT * FROM step_request JOIN request USING (engine_id, request) LIMIT 3"],
        ["recover", str(path)],
    ]
    if EVERYTHING:
        return [info, *whole, *others]
    return [info, whole[at % 3], *([others[at // 3 % 3]] if at % 3 == 0 else [])]


class Runs:
    """Runs of the commands on many traces, in a process that is started anew where a file ends it."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.count = 0

    def over(self, paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
        """The runs on these traces; what must never happen is in `problems`."""
        process, lines = self._start()
        for at, path in enumerate(paths):
            refused = False
            for number, arguments in enumerate(commands(path, at)):
                if number == 2 and refused and not EVERYTHING:
                    break  # `info` cannot open it: one other command shows that none is ahead of that
                self._ask(process, arguments)
                begun, run = self._line(lines), self._line(lines)
                if run is None:
                    process.kill()
                    what = f"ended with {process.wait()}, or hung" if begun is not None else "did not begin"
                    self.problems.append(f"{path.name} {arguments[0]}: {what}")
                    process, lines = self._start()
                    continue
                self.count += 1
                run |= {"path": path, "command": arguments[0]}
                refused |= number == 0 and run["code"] == 3
                self._judge(path, run)
                yield run
        assert process.stdin is not None
        process.stdin.close()
        process.wait(PATIENCE)

    def _judge(self, path: Path, run: dict[str, Any]) -> None:
        said = run["out"] + run["err"]
        found = [
            what
            for what, there in (
                ("a traceback", "Traceback" in said),
                ("blames fdtrace", "fault in fdtrace" in said),
                ("raw characters", RAW.search(said)),
                ("the secret", SECRET in said),
                ("an unknown exit code", run["code"] not in (0, 1, 2, 3)),
                ("a failure without a word", run["code"] > 1 and not run["err"].strip()),
            )
            if there
        ]
        if found:
            self.problems.append(f"{path.name} {run['command']}: {', '.join(found)}: {said[-300:]!r}")

    @staticmethod
    def _start() -> tuple[subprocess.Popen[str], queue.Queue[str]]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fdtrace.run_commands"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", errors="surrogateescape",
            env={**os.environ, "COLUMNS": "200"},
        )  # fmt: skip
        lines: queue.Queue[str] = queue.Queue()
        out = process.stdout
        assert out is not None

        def read() -> None:
            for line in out:
                lines.put(line)
            lines.put("")

        threading.Thread(target=read, daemon=True).start()
        return process, lines

    @staticmethod
    def _ask(process: subprocess.Popen[str], arguments: list[str]) -> None:
        assert process.stdin is not None
        process.stdin.write(json.dumps(arguments) + "\n")
        process.stdin.flush()

    @staticmethod
    def _line(lines: queue.Queue[str]) -> dict[str, Any] | None:
        try:
            line = lines.get(timeout=PATIENCE)
        except queue.Empty:
            return None
        found: dict[str, Any] | None = json.loads(line) if line else None
        return found


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    """Where the traces lie; beside it what must never be read, and a directory in which nothing may appear."""
    (tmp_path / "secret.txt").write_text(SECRET)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "inbox").mkdir()
    return tmp_path / "inbox"


# What the commands say of some of them: what is wrong, and where
SAID = {
    "trace_is_a_view": "`trace` is a view",
    "step_is_a_view": "`step` is a view",
    "generated_column": "computed when it is read",
    "dropped_step": "no table `step`",
    "type_text": "column `num_tokens` of table `step` is VARCHAR, INTEGER is expected",
    "column_missing": "no column `forward_us`",
    "schema_null": "`schema_version` of table `trace` is NULL",
    "schema_negative": "`schema_version` of table `trace` is -1",
    "schema_newer": "its schema is version 1000000",
    "config_is_deep": "column `config` of table `engine` is no JSON object",
    "config_is_a_list": "column `env` of table `engine` is no JSON object",
    "steps_twice": "rows of a step that is there already",
    "requests_twice": "rows of a request that is there already",
    "rows_twice": "tokens more than those of `step`",
    "steps_missing": "steps are missing between the first and the last",
    "steps_and_rows_missing": "steps are missing between the first and the last",
    "one_step_far": "but steps from 0 to 2000000000",
    "one_arrival_far": "column `arrived_step` of table `request` holds 2000000000",
    "rows_missing": "of requests that are not recorded",
    "engine_id_null": "column `engine_id` of table `engine` is NULL",
    "engine_id_other": "rows of an engine that is not in `engine`",
    "step_num_tokens_null": "column `num_tokens` of table `step` is NULL",
    "step_step_null": "column `step` of table `step` is NULL",
    "engine_block_size_zero": "column `block_size` of table `engine` holds 0",
    "recording_for_ever": "says that it is still recording",
    "parts_no_json": "the list of parts in its table `_collector` is not valid",
    "parts_elsewhere": "the list of parts in its table `_collector` is not valid",
    "parts_gone": "whose parts are not beside it",
    "notes_are_an_object": "no list of texts",
    "notes_are_many": "99900 more notes",
}  # fmt: skip


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.slow
def test_a_trace_made_to_harm_does_none_and_is_told_as_what_it_is(good: Path, inbox: Path, part: int) -> None:
    runs, said = Runs(), dict[str, str]()
    names = hostile.names(extremes=EVERYTHING)[part::PARTS]

    def made() -> Iterator[Path]:
        for path in hostile.make_by_hand(good, inbox, names):
            yield path
            path.unlink()

    for run in runs.over(made()):
        said[run["path"].stem] = said.get(run["path"].stem, "") + run["out"] + run["err"]
    assert not runs.problems, "\n".join(runs.problems)
    assert said.keys() == set(names)
    assert {name: text for name, text in SAID.items() if name in said and text not in said[name]} == {}
    assert sorted(path.name for path in inbox.parent.iterdir()) == ["fifo", "inbox", "secret.txt"]
    assert not list(inbox.iterdir()), "nothing is left beside a trace"


def test_what_is_said_is_said_of_traces_that_are_made() -> None:
    assert SAID.keys() <= set(hostile.names(extremes=False))
    assert len(hostile.names(extremes=True)) > 240


@pytest.mark.timeout(3600)
@pytest.mark.slow
def test_a_damaged_trace_is_told_as_that(good: Path, inbox: Path) -> None:
    runs, whole = Runs(), good.read_bytes()

    def made() -> Iterator[Path]:
        for seed in range(CORRUPTIONS):
            path = inbox / f"{seed}.duckdb"
            path.write_bytes(hostile.damaged(whole, seed))
            yield path
            path.unlink()

    codes = Counter(run["code"] for run in runs.over(made()))
    print(f"{runs.count} runs on {CORRUPTIONS} damaged traces, by exit code: {dict(codes)}")
    assert not runs.problems, "\n".join(runs.problems)
    assert codes[3] > runs.count // 2, f"most of them cannot be read: {codes}"
    assert not list(inbox.iterdir())


SAID_BY_A_REPLAY = {
    "step_request_kind_text": "rows that are neither prefill nor decode",
    "step_request_request_huge": "rows of a request that is not in `request`",
    "step_request_num_accepted_tokens_null": "decodes without num_accepted_tokens",
    "decodes_alone": "the prefills of `step_request` ran 0 tokens",
}


@pytest.mark.parametrize("name", SAID_BY_A_REPLAY)
def test_rows_that_contradict_the_rest_are_not_rescheduled(
    good: Path, inbox: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = hostile.make_by_hand(good, inbox, [name])
    assert main(["check", str(path), "-f", "original"]) == 3
    assert SAID_BY_A_REPLAY[name] in capsys.readouterr().err


def test_what_is_no_trace_at_all(good: Path, inbox: Path) -> None:
    whole = good.read_bytes()
    files = {
        "empty": b"",
        "text": b"hello\n" * 100,
        "head": whole[:64],
        "cut": whole[:50000],
        "magic": b"\0" * 8 + b"DUCK",
    }
    for name, data in files.items():
        (inbox / f"{name}.duckdb").write_bytes(data)
    os.mkfifo(inbox / "pipe.duckdb")
    (inbox / "directory.duckdb").mkdir()
    (inbox / "device.duckdb").symlink_to("/dev/zero")
    runs = Runs()
    refused = [run for run in runs.over(sorted(inbox.iterdir())) if run["code"] == 3]
    assert not runs.problems, "\n".join(runs.problems)
    assert len(refused) == runs.count


def test_a_log_of_changes_beside_it_is_not_taken_in(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.duckdb"
    shutil.copy(good, path)
    os.mkfifo(tmp_path / "t.duckdb.wal")
    runs = Runs()
    assert [run["code"] for run in runs.over([path])] == [3] * runs.count
    assert not runs.problems
