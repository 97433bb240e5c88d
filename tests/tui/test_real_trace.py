"""The screen on a trace that was really recorded, in a real terminal: what only a whole program shows."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fdtrace.recorder.trace.trace import open_trace
from tests.tui.test_tmux import ROOT, Terminal

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")

ENGINE = ROOT / "tests" / "recorder" / "played" / "engine.py"


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two engines, one after the other: 80 steps, and 50."""
    path = tmp_path_factory.mktemp("real") / "t.duckdb"
    run = f"{sys.executable} {ENGINE} --steps"
    command = [
        sys.executable,
        "-m",
        "fdtrace",
        "record",
        "-o",
        str(path),
        "--",
        "sh",
        "-c",
        f"{run} 80; {run} 50",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return path


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[list[Terminal]]:
    """Terminals to be closed after the test."""
    terminals: list[Terminal] = []
    yield terminals
    for terminal in terminals:
        terminal.close()


def show(opened: list[Terminal], tmp_path: Path, trace: Path, *options: str) -> Terminal:
    """The screen with `original`, on a terminal of its own."""
    command = [sys.executable, "-m", "fdtrace", "replay", str(trace), "-f", "original", *options]
    opened.append(Terminal(tmp_path / f"tmux{len(opened)}", *command))
    return opened[-1]


def test_the_engine_that_was_asked_for_is_shown(trace: Path, opened: list[Terminal], tmp_path: Path) -> None:
    with open_trace(trace) as reader:
        found = reader.rows("SELECT engine_id, count(*) AS steps FROM step GROUP BY ALL ORDER BY ALL")
    assert [row["steps"] for row in found] == [80, 50]
    for engine, last in ((0, 79), (1, 49)):
        terminal = show(opened, tmp_path, trace, "--engine", str(engine))
        terminal.until("original")
        terminal.type("G")
        terminal.until(f"step {last} of")


def test_an_engine_that_is_not_there_is_said(trace: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "fdtrace",
        "replay",
        str(trace),
        "--engine",
        "7",
        "--report",
        "-f",
        "original",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no engine 7" in done.stderr
    assert "engines: 0, 1" in done.stderr


def test_escape_closes_what_was_opened_last_first(
    trace: Path, opened: list[Terminal], tmp_path: Path
) -> None:
    """The inspector over the rows of a query, and these over the step's requests."""
    terminal = show(opened, tmp_path, trace)
    terminal.until("original")
    terminal.type("G")
    terminal.until("step 79 of")
    terminal.write("S")
    terminal.until("sql>")
    terminal.type("C-u")
    terminal.write("SELECT 'only' || 'here' AS word")
    terminal.type("Enter")
    terminal.until("onlyhere")
    terminal.type("Enter")
    terminal.until_gone("onlyhere")
    inspector = terminal.until("budget")
    terminal.type("Escape")
    rows = terminal.until("onlyhere")
    assert rows != inspector
    terminal.type("Escape")
    terminal.until_gone("onlyhere")
    terminal.type("q")
    assert terminal.ended()
