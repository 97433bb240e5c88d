"""The characters of a report. Not in `report.py`: the screen draws some of these tables, and has no use for plotext."""

from __future__ import annotations

from rich.console import Console

BLOCKS = "▀▄█▌▐▖▗▘▝▙▟▛▜▲─│┤┬·"
"""The characters of the charts. Plain ASCII replaces them if the console's encoding lacks them."""


def has_blocks(console: Console) -> bool:
    """Whether the console can show the characters of the charts."""
    try:
        BLOCKS.encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
