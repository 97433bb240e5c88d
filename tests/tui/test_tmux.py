"""The screen in a real terminal: what a person would see and type."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from fdtrace.recorder.trace_paths import parts_directory
from tests.recorder.helpers import query, start_engine, stop_engine
from tests.tui.recorded import Recorded

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
needs_paddle = pytest.mark.skipif(find_spec("paddle") is None, reason="the sandbox engine needs Paddle")


def _env() -> dict[str, str]:
    """With no COLUMNS or LINES, which an xdist worker has and which would go before the terminal's own size."""
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    return {**kept, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}


class Terminal:
    """A tmux server of its own, running one command."""

    def __init__(self, socket: Path, *command: str, size: tuple[int, int] = (100, 30)) -> None:
        self.socket = socket
        columns, rows = map(str, size)
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", columns, "-y", rows, *command)

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-u", "-S", str(self.socket), *arguments]
        done = subprocess.run(command, env=_env(), capture_output=True, text=True, timeout=300, check=False)
        return done.stdout

    def type(self, *keys: str) -> None:
        """Send keys, by tmux's names."""
        self._tmux("send-keys", *keys)

    def write(self, text: str) -> None:
        """Send text as it is."""
        self._tmux("send-keys", "-l", text)

    def until(self, text: str, seconds: int = 60) -> str:
        """The screen, once it holds a text."""
        for _ in range(10 * seconds):
            screen = self._tmux("capture-pane", "-p")
            if text in screen:
                return screen
            time.sleep(0.1)
        raise AssertionError(f"{text!r} never came:\n{screen}")

    def until_grown(self) -> None:
        """Wait until the recording on the screen has grown."""
        first = _num_steps(self.until("RECORDING", 120))
        for _ in range(1200):
            if _num_steps(self._tmux("capture-pane", "-p")) > first:
                return
            time.sleep(0.1)
        raise AssertionError(f"no step after {first}")

    def until_gone(self, text: str) -> None:
        """Wait until the screen no longer holds a text."""
        for _ in range(600):
            if text not in self._tmux("capture-pane", "-p"):
                return
            time.sleep(0.1)
        raise AssertionError(f"{text!r} stayed")

    def ended(self) -> bool:
        """Whether the command ended."""
        for _ in range(600):
            if not self._tmux("list-sessions"):
                return True
            time.sleep(0.1)
        return False

    def close(self) -> None:
        """End the server, and what runs in it."""
        self._tmux("kill-server")


def _num_steps(screen: str) -> int:
    """The steps that the first line of a recording in progress tells."""
    found = re.search(r"(\d+) steps · RECORDING", screen)
    return int(found[1]) if found else -1


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path / "tmux", sys.executable, "-m", "tests.tui.open_screen")
    yield opened
    opened.close()


def test_from_opening_to_the_cause_of_an_exceeded_step(terminal: Terminal) -> None:
    screen = terminal.until("3 pr7499")
    terminal.until("never exceeds · 247 steps")
    assert "▲ 126 of 232 exceed" in terminal.until("exceeds 1024 by 8")
    assert "█" in screen
    terminal.type("n")
    terminal.until("step 3 of 1-290")
    terminal.type("1", "0", "l")
    terminal.until("step 13 of 1-290")
    terminal.type(":", "1", "0", "0", "Enter")
    screen = terminal.until("step 100 · recorded:")
    assert "decodes" in screen
    assert "exceeds 1024 by" in screen
    terminal.type("?")
    terminal.until("Move the cursor")
    terminal.type("Escape")
    terminal.until("step 100 of 1-290")
    terminal.type("q")
    assert terminal.ended()


@needs_paddle
@pytest.mark.slow
def test_a_journey_from_the_demo_to_the_cause_of_an_exceeded_step(tmp_path: Path) -> None:
    """`make demo` runs `fdtrace demo`: the sandbox engine, recorded live, opens in the debugger."""
    trace = tmp_path / "demo.duckdb"
    demo = [sys.executable, "-m", "fdtrace", "demo", "--steps", "80", "-o", str(trace)]
    opened = Terminal(tmp_path / "tmux", *demo, size=(200, 50))
    try:
        opened.until("exceeded steps:", seconds=120)
        opened.until("never exceeds")
        opened.type("n", "Enter")
        opened.until("tokens ran that nobody counted")
        opened.until("= max(256")
        opened.until("each decode was charged 1 in the loop")
        opened.type("Escape")
        opened.type(":")
        opened.write("b num_tokens > limit + 20")
        opened.type("Enter")
        opened.until("stops in recorded")
        opened.type("c")
        opened.until("breakpoint: num_tokens > limit + 20")
        opened.type("S")
        opened.write("SELECT step, excess_tokens FROM exceeded ORDER BY excess_tokens DESC")
        opened.type("Enter")
        opened.until("j/k step through them")
        opened.type("j")
        opened.until("row 2 of")
        opened.type("Escape")
        opened.until("computed before")
        opened.type("A")
        opened.write("mine: max_num_batched_tokens - num_running_decodes * 5")
        opened.type("Enter")
        opened.until("5 mine")
        opened.until("never exceeds")
        opened.type("j", "r")
        opened.until("first token after")
        opened.type("Escape")
        opened.until_gone("first token after")
        opened.type("q")
        assert opened.ended()
    finally:
        opened.close()


@pytest.mark.slow
def test_a_recording_in_progress_is_followed_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "live.duckdb"
    recorded = Recorded(path)
    opened = Terminal(tmp_path / "tmux", sys.executable, "-m", "fdtrace", "replay", str(path), "-f", "pr7499")
    try:
        opened.until_grown()
        opened.type("h", "n", "w", "F")
        opened.until_grown()
        recorded.engine.kill()
        opened.until_gone("RECORDING")
        opened.type("q")
        assert opened.ended()
    finally:
        opened.close()
        recorded.close()


def test_leaving_the_screen_ends_what_it_attached_to(tmp_path: Path) -> None:
    path, engine = tmp_path / "live.duckdb", start_engine("--sleep", 0.01)
    arguments = ["attach", str(engine.pid), "--tui", "-o", str(path), "-f", "pr7499"]
    opened = Terminal(tmp_path / "tmux", sys.executable, "-m", "fdtrace", *arguments, size=(120, 36))
    try:
        opened.until_grown()
        opened.type("h", "h")
        opened.until_grown()
        opened.type("q")
        assert opened.ended()
        assert stop_engine(engine)["hooked"] is False
    finally:
        opened.close()
        engine.kill()
    assert query(path, "SELECT state, ended_by FROM trace") == [("complete", "interrupt")]


def test_a_collector_that_fails_does_not_end_the_screen(tmp_path: Path) -> None:
    path, engine = tmp_path / "live.duckdb", start_engine("--sleep", 0.01)
    arguments = ["attach", str(engine.pid), "--tui", "-o", str(path), "-f", "pr7499"]
    opened = Terminal(tmp_path / "tmux", sys.executable, "-m", "fdtrace", *arguments, size=(120, 36))
    try:
        opened.until_grown()
        parts_directory(path).rename(tmp_path / "gone")  # in one step: the collector writes beside this
        opened.until("cannot be read now")
        opened.type("h", "h", "?")
        opened.until("Move the cursor")
        opened.type("Escape")
        opened.until_gone("Move the cursor")
        opened.type("q")
        assert opened.ended()
    finally:
        opened.close()
        engine.kill()


@needs_paddle
@pytest.mark.slow
def test_attach_shows_a_recording_in_progress(tmp_path: Path) -> None:
    path = tmp_path / "live.duckdb"
    server = subprocess.Popen(
        [sys.executable, "-m", "fdtrace", "sandbox", "--steps", "100000", "--step-s", "0.01"],
        env=_env(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    opened = None
    try:
        assert server.stdout is not None
        pid = next(line.split()[1] for line in server.stdout if line.startswith("ready "))
        arguments = ["attach", pid, "--tui", "-o", str(path), "-f", "pr7499"]
        opened = Terminal(tmp_path / "tmux", sys.executable, "-m", "fdtrace", *arguments, size=(120, 36))
        opened.until("following")
        opened.until_grown()
        opened.type("h")
        opened.type("q")
        assert opened.ended()
    finally:
        if opened is not None:
            opened.close()
        server.kill()
        server.wait()
    info = [sys.executable, "-m", "fdtrace", "info", str(path)]
    said = subprocess.run(info, env=_env(), capture_output=True, text=True, timeout=60, check=True).stdout
    assert "complete" in said
