"""Playing: which step is due. It depends on elapsed time, so a late tick does not slow playing down."""

from __future__ import annotations

from dataclasses import dataclass

SLOWEST, FASTEST = 0.5, 1_000_000.0


@dataclass
class Player:
    """The speed in steps a second, and since when it plays. Times are seconds of any clock."""

    speed: float = 8.0
    backwards: bool = False
    _since: float | None = None
    _from: int = 0

    @property
    def playing(self) -> bool:
        """Whether it plays."""
        return self._since is not None

    def start(self, step: int, now: float) -> None:
        """Play from `step`."""
        self._since, self._from = now, step

    def stop(self) -> None:
        """Stop playing."""
        self._since = None

    def due(self, now: float) -> int | None:
        """The step due at `now`; None: it does not play."""
        if self._since is None:
            return None
        steps = int((now - self._since) * self.speed)
        return self._from - steps if self.backwards else self._from + steps

    def change(self, factor: float, step: int, now: float) -> None:
        """Play `factor` times as fast, from `step` on."""
        self.speed = min(max(self.speed * factor, SLOWEST), FASTEST)
        self._restart(step, now)

    def reverse(self, step: int, now: float) -> None:
        """Play in the other direction, from `step` on."""
        self.backwards = not self.backwards
        self._restart(step, now)

    def _restart(self, step: int, now: float) -> None:
        if self.playing:
            self.start(step, now)
