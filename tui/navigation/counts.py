"""Digits typed before a key, as in `10l`."""

from __future__ import annotations

from fdtrace.tui.replay_session import MAX_PANES

COUNT_SECONDS = 1.0
"""A count is forgotten if no key follows within this time."""

MAX_COUNT = 10_000_000


class CountPrefix:
    """Digits typed before a key, as in `10l`.

    A single digit from 1 to 5 also makes that pane the active one. If a key that takes a count follows within a
    second, the digit was a count: `take` returns it, and `undo` is the pane that was active before. A key that depends
    on the active pane takes a single digit as the pane, not as a count: `2n` goes to the next exceeded step of pane 2,
    `12n` to the twelfth.
    """

    def __init__(self) -> None:
        self._digits = ""
        self._at = 0.0
        self.undo: int | None = None

    def digit(self, digit: str, now: float, active: int | None) -> bool:
        """Add a digit typed at `now` (seconds); `active` is the pane active before it. False: a count cannot begin
        with `0`.
        """
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
        """Return the count and forget it; None: there is none. `by_pane`: the key depends on the active pane."""
        digits, is_recent = self._digits, now - self._at <= COUNT_SECONDS
        names_a_pane = by_pane and len(digits) == 1 and int(digits) <= MAX_PANES
        if not digits or not is_recent or names_a_pane:
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
