"""Playing: which step is due, told from elapsed time, so that a late tick does not slow it down."""

from __future__ import annotations

from dataclasses import dataclass

SLOWEST, FASTEST = 0.5, 1_000_000.0


@dataclass
class Player:
    """Steps a second, and since when it plays; times in seconds of any clock."""

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
        """Stop."""
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
        self._again(step, now)

    def reverse(self, step: int, now: float) -> None:
        """Play the other way, from `step` on."""
        self.backwards = not self.backwards
        self._again(step, now)

    def _again(self, step: int, now: float) -> None:
        if self.playing:
            self.start(step, now)
