"""The replay screen as a file, with the same panes as on the terminal: for a bug report or a web page."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.segment import Segment
from textual.pilot import Pilot

from fdtrace.recorder.errors import UsageError
from fdtrace.tui import _textual
from fdtrace.tui.app import ReplayApp

SETTLE = 0.6
"""Seconds without any work before the picture is taken."""


def write_screen(
    app: ReplayApp,
    *,
    size: tuple[int, int] = (120, 36),
    keys: Sequence[str] = (),
    svg: Path | None = None,
    html: Path | None = None,
) -> None:
    """Write the screen as a picture, once every replay is computed and the keys are pressed.

    Args:
        app: the screen.
        size: its columns and rows.
        keys: keys to press, by Textual's names, one after the other.
        svg: the SVG file to write; None: none.
        html: the HTML file to write; None: none.

    Raises:
        UsageError: a file cannot be written.
    """

    async def run() -> None:
        async with app.run_test(size=size) as pilot:
            await _settled(pilot, app)
            for key in keys:
                await pilot.press(key)
                await _settled(pilot, app)
            if svg is not None:
                _write(svg, app.export_screenshot(title=app.TITLE))
            if html is not None:
                _write(html, _page(app))

    asyncio.run(run())


async def _settled(pilot: Pilot[None], app: ReplayApp) -> None:
    """Wait for the replays, and for everything that is read in the background."""
    while not all(pane.job.ended and pane.seen == pane.job.state for pane in app.panes):
        await pilot.pause(0.05)
    quiet = 0.0
    while quiet < SETTLE:
        await pilot.pause(0.1)
        quiet = 0.0 if app.busy else quiet + 0.1


def _page(app: ReplayApp) -> str:
    width = app.size.width
    console = Console(
        width=width, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    for strip in _textual.strips_of(app):
        console.print(_Line([*strip]), end="")
    return console.export_html(inline_styles=True)


class _Line:
    """One line of the screen, as Rich prints it."""

    def __init__(self, segments: list[Segment]) -> None:
        self.segments = segments

    def __rich_console__(self, _console: Console, _options: object) -> list[Segment]:
        return [*self.segments, Segment.line()]


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written", why=error.strerror or str(error)) from None
