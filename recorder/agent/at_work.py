"""Finds an engine's object in the frames of this process's threads: an idle engine makes no call that shows it."""

from __future__ import annotations

import sys
from typing import Any, Callable


def find(pick: Callable[[Any], Any]) -> Any:
    """Call `pick` with the `self` of each method that runs in any thread; the first result that is not None, or None.

    `pick` gets every such object, of any class. It must not do anything that runs code of the engine.
    """
    frames: Any = list(sys._current_frames().values())
    picked = None
    while frames and picked is None:
        frame = frames.pop()
        code = frame.f_code
        if code.co_varnames[:1] == ("self",) and not code.co_filename.startswith("<fdtrace"):
            picked = pick(frame.f_locals.get("self"))
        if frame.f_back is not None:
            frames.append(frame.f_back)
    frames = frame = (
        None  # this function's own frame is among them: it would keep itself and its arguments alive
    )
    return picked
