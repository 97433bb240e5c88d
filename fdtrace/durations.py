"""Durations on the command line: `90s`, `10m`, `2h`."""

from __future__ import annotations

import re

from fdtrace.recorder.errors import UsageError

DURATION = re.compile(r"(?P<number>[0-9]{1,9}(\.[0-9]{1,6})?)\s*(?P<unit>ms|s|m|h|d)\Z")
UNITS_NS = {"ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9, "d": 86_400 * 10**9}


def duration_of(text: str, option: str) -> int:
    """The nanoseconds that `text` means. UsageError if it is no duration; `option` is the option it came with."""
    match = DURATION.match(text.strip())
    if match is None:
        raise UsageError(
            f"{text!r} is no duration", why="a number with ms, s, m, h or d is", hint=f"{option} 30s"
        )
    return round(float(match["number"]) * UNITS_NS[match["unit"]])
