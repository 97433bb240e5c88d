"""Sizes of memory on the command line: `512MB`, `80GiB`."""

from __future__ import annotations

import re

from fdtrace.recorder.errors import UsageError

SIZE = re.compile(r"(?P<number>[0-9]{1,15}(\.[0-9]{1,9})?)\s*(?P<unit>([kmgt]i?)?b)\Z", re.IGNORECASE)
UNITS = {
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}


def size_of(text: str, option: str) -> int:
    """The bytes that `text` means. UsageError if it is no size of memory, or 0; `option` is the option it came with."""
    match = SIZE.match(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is no size of memory", hint=f"{option} 80GiB")
    num_bytes: int = round(float(match["number"]) * UNITS[match["unit"].lower()])
    if num_bytes < 1:
        raise UsageError(f"{text} is no memory at all", hint=f"{option} 80GiB")
    return num_bytes
