"""The screen as a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from fdtrace.recorder.errors import UsageError
from fdtrace.tui.app import ReplayApp
from fdtrace.tui.export import write_screen
from fdtrace.tui.sources import Sources
from tests.tui.recordings import case_recording
from tests.tui.screens import formula_replay


def write(**options: object) -> None:
    recording, history = case_recording("tight_blocks")
    replays = [formula_replay(recording, "pr7438"), formula_replay(recording, "pr7499")]
    write_screen(ReplayApp(recording, replays, sources=Sources(rows=history.rows)), **options)  # type: ignore[arg-type]


def test_svg_and_html_hold_the_panes_and_what_keys_opened(tmp_path: Path) -> None:
    svg, html = tmp_path / "screen.svg", tmp_path / "screen.html"
    write(size=(150, 40), keys=["enter"], svg=svg, html=html)
    drawn = svg.read_text().replace("&#160;", " ")
    page = html.read_text()
    for text in ("pr7438", "never exceeds", "tokens ran that nobody counted", "max(384, 512)"):
        assert text in drawn
        assert text in page
    assert drawn.startswith("<svg")
    assert "▲" in page


def test_a_path_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        write(svg=tmp_path / "no" / "where.svg")
