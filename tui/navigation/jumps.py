"""Places that one has been at: marks, and the trail of jumps. No terminal."""

from __future__ import annotations

from dataclasses import dataclass

from fdtrace.tui.panes.series import Window

MOST_TRAIL = 500


@dataclass(frozen=True)
class Place:
    """Where one was: the step, and the window that was shown."""

    step: int
    window: Window


class Trail:
    """Places that were left by a jump, to go back to and forward again."""

    def __init__(self) -> None:
        self._back: list[Place] = []
        self._forward: list[Place] = []

    def leave(self, place: Place) -> None:
        """A jump leaves a place; what was ahead is forgotten."""
        if not self._back or self._back[-1] != place:
            self._back.append(place)
        del self._back[:-MOST_TRAIL]
        self._forward.clear()

    def back(self, here: Place) -> Place | None:
        """The place before; None: there is none."""
        return self._turn(self._back, self._forward, here)

    def forward(self, here: Place) -> Place | None:
        """The place that `back` came from."""
        return self._turn(self._forward, self._back, here)

    @staticmethod
    def _turn(source: list[Place], target: list[Place], here: Place) -> Place | None:
        while source:
            place = source.pop()
            if place.step != here.step or place.window != here.window:
                target.append(here)
                return place
        return None
