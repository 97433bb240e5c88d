"""What a terminal can show, judged by its environment: block characters, and a light background."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TextIO

from fdtrace.tui.theme import BLOCKS

WITHOUT_BLOCKS = ("dumb", "linux", "vt52", "vt100", "vt102", "vt220", "ansi")
"""Values of TERM of terminals whose fonts lack the eighth blocks."""


@dataclass(frozen=True)
class Terminal:
    """`ascii`: only 16 colours and 7-bit characters. `light`: dark letters on a light background."""

    ascii: bool = False
    light: bool = False

    @classmethod
    def here(cls) -> Terminal:
        """The terminal that this process writes to."""
        return cls.of(os.environ, sys.stdout.encoding)

    @classmethod
    def of(cls, environment: Mapping[str, str], encoding: str | None) -> Terminal:
        """Judged by TERM, the output encoding, and COLORFGBG; the last field of the latter is the background colour."""
        background = environment.get("COLORFGBG", "").rpartition(";")[2]
        return cls(
            ascii=environment.get("TERM", "") in WITHOUT_BLOCKS or not _encodes(encoding),
            light=background in ("7", "15"),
        )


def is_lost(file: TextIO) -> bool:
    """Whether the terminal of this file has been closed: its window, or the connection to it."""
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
