"""The screen in a real terminal: what a person would see and type."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


class Terminal:
    """A tmux server of its own, 100x30, running one command."""

    def __init__(self, socket: Path, *command: str) -> None:
        self.socket = socket
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", "100", "-y", "30", *command)

    def _tmux(self, *arguments: str) -> str:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
        command = ["tmux", "-u", "-S", str(self.socket), *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
        return done.stdout

    def type(self, *keys: str) -> None:
        """Send keys, by tmux's names."""
        self._tmux("send-keys", *keys)

    def until(self, text: str) -> str:
        """The screen, once it holds a text."""
        for _ in range(300):
            screen = self._tmux("capture-pane", "-p")
            if text in screen:
                return screen
            time.sleep(0.1)
        raise AssertionError(f"{text!r} never came:\n{screen}")

    def ended(self) -> bool:
        """Whether the command ended."""
        for _ in range(100):
            if not self._tmux("list-sessions"):
                return True
            time.sleep(0.1)
        return False

    def close(self) -> None:
        """End the server, and what runs in it."""
        self._tmux("kill-server")


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
