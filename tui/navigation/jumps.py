"""Places to return to: marks, and the trail of jumps. Nothing here needs a terminal."""

from __future__ import annotations

from dataclasses import dataclass

from fdtrace.tui.panes.series import Window

MOST_TRAIL = 500


@dataclass(frozen=True)
class Place:
    """A step, and the window that was shown with it."""

    step: int
    window: Window


class JumpHistory:
    """The places that jumps left, to go back to and forward again."""

    def __init__(self) -> None:
        self._back: list[Place] = []
        self._forward: list[Place] = []

    def leave(self, place: Place) -> None:
        """A jump leaves a place. Undone jumps can no longer be made again."""
        if not self._back or self._back[-1] != place:
            self._back.append(place)
        del self._back[:-MOST_TRAIL]
        self._forward.clear()

    def back(self, here: Place) -> Place | None:
        """The previous place; None: there is none."""
        return self._move_between(self._back, self._forward, here)

    def forward(self, here: Place) -> Place | None:
        """The place that the last `back` left; None: there is none."""
        return self._move_between(self._forward, self._back, here)

    @staticmethod
    def _move_between(source: list[Place], target: list[Place], here: Place) -> Place | None:
        while source:
            place = source.pop()
            if place.step != here.step or place.window != here.window:
                target.append(here)
                return place
        return None
