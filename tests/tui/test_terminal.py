"""What the environment says of a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from fdtrace.tui.terminal import Terminal
from fdtrace.tui.theme import ASCII, LIGHT
from tests.tui.screens import lab_app, settled


@pytest.mark.parametrize(
    ("environment", "encoding", "terminal"),
    [
        ({"TERM": "xterm-256color"}, "utf-8", Terminal()),
        ({"TERM": "xterm-256color"}, "ascii", Terminal(ascii=True)),
        ({"TERM": "xterm-256color"}, None, Terminal(ascii=True)),
        ({"TERM": "vt100"}, "utf-8", Terminal(ascii=True)),
        ({"TERM": "rxvt", "COLORFGBG": "0;default;15"}, "utf-8", Terminal(light=True)),
        ({"TERM": "rxvt", "COLORFGBG": "15;0"}, "utf-8", Terminal()),
    ],
)
def test_what_the_environment_says(
    environment: dict[str, str], encoding: str | None, terminal: Terminal
) -> None:
    assert Terminal.of(environment, encoding) == terminal


def test_the_screen_ends_when_its_terminal_is_closed_and_the_hang_up_ignored() -> None:
    """As under nohup: reading from what is left of the terminal would never end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    process = subprocess.Popen(
        ["sh", "-c", 'trap "" HUP; exec "$0" -m tests.tui.open_screen', sys.executable],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TERM": "xterm-256color"},
    )
    os.close(theirs)
    try:
        seen = b""
        while b"exceeded steps" not in seen:
            seen += os.read(ours, 65536)
        os.close(ours)
        process.wait(60)
    finally:
        process.kill()
        process.wait()


async def test_a_light_terminal_gets_dark_letters() -> None:
    async with lab_app(terminal=Terminal(light=True)).run_test(size=(80, 24)) as pilot:
        app = await settled(pilot)
        assert not app.current_theme.dark
        assert app.look().palette is LIGHT


async def test_a_light_terminal_without_blocks_gets_ascii_and_dark_letters() -> None:
    async with lab_app(terminal=Terminal(ascii=True, light=True)).run_test(size=(80, 24)) as pilot:
        app = await settled(pilot)
        assert app.current_theme.ansi
        assert not app.current_theme.dark
        assert app.look().glyphs is ASCII
