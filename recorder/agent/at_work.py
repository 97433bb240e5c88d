"""Finds an engine's object in the frames of this process's threads: an idle engine makes no call that would show it."""

from __future__ import annotations

import sys
from typing import Any, Callable


def find(wanted: Callable[[Any], Any]) -> Any:
    """The first that `wanted` makes of the `self` of a method at work in any thread; None: there is none.

    `wanted` gets every such object, whatever it is: it asks for nothing that would run code of the engine.
    """
    frames: Any = list(sys._current_frames().values())
    found = None
    while frames and found is None:
        at = frames.pop()
        code = at.f_code
        if code.co_varnames[:1] == ("self",) and not code.co_filename.startswith("<fdtrace"):
            found = wanted(at.f_locals.get("self"))
        if at.f_back is not None:
            frames.append(at.f_back)
    frames = at = None  # among them is this one: it would keep itself, and all that it was called with
    return found
