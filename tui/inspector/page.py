"""A page of the inspector: paragraphs, headings and tables of one width."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.style import Style
from rich.text import Text

from fdtrace.recorder.printable import printable
from fdtrace.replayer.formulas.worked_example import MINUS, TIMES
from fdtrace.tui.theme import Look

_ASCII = str.maketrans({MINUS: "-", TIMES: "*"})


class Page:
    """Lines of text of one width. Lines that are too long are wrapped."""

    def __init__(self, width: int, look: Look) -> None:
        self.width, self.look, self.lines = max(16, width), look, list[Text]()

    def say(self, text: str, style: Style | None = None, indent: int = 2, more: int = 2) -> None:
        """Add a paragraph. `more`: further cells by which all lines but the first are indented."""
        text = printable(text)
        if self.look.glyphs.border == "ascii":
            text = text.translate(_ASCII)
        wrapped = textwrap.wrap(
            text, self.width, initial_indent=" " * indent, subsequent_indent=" " * (indent + more)
        )
        self.lines += [Text(line, style or Style.null(), no_wrap=True) for line in wrapped]

    def head(self, text: str) -> None:
        """Add a heading."""
        self.lines.append(Text(printable(text)[: self.width], self.look.palette.head, no_wrap=True))

    def row(self, cells: Sequence[str], widths: Sequence[int], style: Style | None = None) -> None:
        """Add a line of a table: the first column is aligned left, the others right."""
        name = printable(cells[0])[: widths[0]].ljust(widths[0])
        cells = [cells[0], *map(printable, cells[1:])]
        rest = "".join(cell.rjust(cells_) for cell, cells_ in zip(cells[1:], widths[1:], strict=True))
        self.lines.append(Text((f"  {name}{rest}")[: self.width], style or Style.null(), no_wrap=True))
