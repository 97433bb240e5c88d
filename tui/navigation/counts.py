"""Digits typed before a key, as in `10l`."""

from __future__ import annotations

from fdtrace.tui.replay_session import MAX_PANES

COUNT_SECONDS = 1.0
"""A count is forgotten when no key follows it for so long."""

MAX_COUNT = 10_000_000


class Count:
    """Digits typed before a key, as in `10l`.

    A digit from 1 to 5 alone also makes that pane the active one. Where a moving key follows within a second,
    it was a count: `take` gives it, and `undo` tells which pane was active before. Jumps to exceeded steps
    depend on the active pane, so a lone digit that named a pane is none for them: `2n` is the next exceeded
    step of pane 2, `12n` the twelfth.
    """

    def __init__(self) -> None:
        self._digits = ""
        self._at = 0.0
        self.undo: int | None = None

    def digit(self, digit: str, now: float, active: int | None) -> bool:
        """Add a digit typed at `now` (seconds); `active`: the pane active before. False: `0` starts none."""
        if now - self._at > COUNT_SECONDS:
            self.clear()
        if digit == "0" and not self._digits:
            return False
        if not self._digits:
            self.undo = active
        self._digits += digit
        self._at = now
        return True

    def take(self, now: float, *, by_pane: bool = False) -> int | None:
        """The count, and forget it; None: there is none. `by_pane`: the key depends on the active pane."""
        digits, fresh = self._digits, now - self._at <= COUNT_SECONDS
        named_pane = by_pane and len(digits) == 1 and int(digits) <= MAX_PANES
        if not digits or not fresh or named_pane:
            self.clear()
            return None
        self._digits = ""
        return min(int(digits), MAX_COUNT)

    def clear(self) -> None:
        """Forget what was typed."""
        self._digits, self.undo = "", None

    @property
    def pending(self) -> str:
        """The digits so far."""
        return self._digits
