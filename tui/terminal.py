"""What a terminal can show, as far as its environment tells: block characters, and a light background."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TextIO

from fdtrace.tui.theme import BLOCKS

WITHOUT_BLOCKS = ("dumb", "linux", "vt52", "vt100", "vt102", "vt220", "ansi")
"""Values of TERM whose fonts lack the eighths of a block."""


@dataclass(frozen=True)
class Terminal:
    """`ascii`: 16 colours and 7-bit characters only. `light`: dark letters on a light background."""

    ascii: bool = False
    light: bool = False

    @classmethod
    def here(cls) -> Terminal:
        """The one that this process writes to."""
        return cls.of(os.environ, sys.stdout.encoding)

    @classmethod
    def of(cls, environment: Mapping[str, str], encoding: str | None) -> Terminal:
        """By TERM, the encoding of its output, and COLORFGBG, whose last field is the background's colour."""
        background = environment.get("COLORFGBG", "").rpartition(";")[2]
        return cls(
            ascii=environment.get("TERM", "") in WITHOUT_BLOCKS or not _encodes(encoding),
            light=background in ("7", "15"),
        )


def is_lost(file: TextIO) -> bool:
    """Whether the terminal that a file is of has been closed: its window, or the connection to it."""
    poller = select.poll()
    poller.register(file.fileno(), 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poller.poll(0))


MODERN = Terminal()
"""Blocks, colours and a dark background."""


def _encodes(encoding: str | None) -> bool:
    try:
        BLOCKS.area.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
