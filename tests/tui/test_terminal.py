"""What the environment says of a terminal."""

from __future__ import annotations

import pytest

from tests.tui.screens import lab_app, settled
from tui.style import ASCII, LIGHT
from tui.terminal import Terminal


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
        assert app.glyphs is ASCII
