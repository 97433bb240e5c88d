"""The first and the last line of the screen."""

from __future__ import annotations

from textual.content import Content
from textual.style import Style

from fdtrace.recorder.printable import printable
from fdtrace.recorder.recording import Recording
from fdtrace.tui.keys import hints
from fdtrace.tui.series import Series
from fdtrace.tui.style import Glyphs

HEAD = 500
"""Characters of the first line at most."""
MESSAGE_STAYS = 4.0
"""Seconds that a message stays on the bottom line, where no key was pressed since."""


def one_line(error: str) -> str:
    """An error's text (what, why, next) in one line."""
    return " ".join(error.replace("\n  why: ", ": ").replace("\n  next: ", "; next: ").split())


def head_line(
    title: str, recording: Recording, recorded: Series, glyphs: Glyphs, live: str, standstill: str = ""
) -> str:
    """The engine, what limits it, how much is recorded; `live`: how a recording in progress stands; `standstill`: how
    the engine stands still, said first.
    """
    engine = recording.engine
    speculation = f"K {engine.num_speculative_tokens}" if engine.spec_method else "no speculation"
    parts = [
        title, *([standstill] if standstill else []), f"{engine.name} {engine.version}".strip(),
        f"limit {recorded.limit}", speculation, f"{engine.max_num_seqs} seqs", f"{engine.num_blocks} blocks",
        f"{len(recorded)} steps", *([live] if live else []),
    ]  # fmt: skip
    return printable(f" {glyphs.dot} ".join(parts), HEAD)


def opening_line(series: Series, step: int) -> str:
    """What the screen opens on, in words."""
    ran, count = series.value("num_tokens", step) or 0, len(series.over)
    which = "the first" if step == int(series.step[series.over[0]]) else "one"
    return f"{which} of {count} exceeded steps: {step} ran {ran}, limit {series.limit}; Enter tells why"


def with_hints(left: str, room: int, *, ascii: bool) -> Content:
    """A line that ends in as many hints as fit; a click on one runs its action."""
    shown = hints(room - len(left) - 2)
    gap = " | " if ascii else " · "
    used = sum(len(text) for text, _ in shown) + len(gap) * (len(shown) - 1)
    parts: list[str | tuple[str, Style]] = [left, " " * (room - len(left) - used)]
    for at, (text, action) in enumerate(shown):
        parts += [gap] if at else []
        parts.append((text, Style.from_meta({"@click": f"app.{action}"})))
    return Content.assemble(*parts)
