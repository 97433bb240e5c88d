"""Watches: expressions whose values are shown. No terminal."""

from __future__ import annotations

from collections.abc import Sequence

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.history.condition import Condition
from fdtrace.tui.panes.series import Series


class Watches:
    """Expressions whose values at the cursor are shown for each pane."""

    def __init__(self) -> None:
        self.all: list[Condition] = []

    def toggle(self, text: str) -> bool:
        """Add a watch, or remove the one that is there; whether it is there then. UsageError: it is none."""
        new = Condition(text)
        for known in self.all:
            if known.text == new.text:
                self.all.remove(known)
                return False
        self.all.append(new)
        return True

    def values(self, series: Sequence[Series | None], step: int) -> list[tuple[str, list[str]]]:
        """Each watch with its value in each history."""
        return [(watch.text, [_value(watch, one, step) for one in series]) for watch in self.all]


def _value(watch: Condition, series: Series | None, step: int) -> str:
    at = None if series is None else series.index(step)
    if series is None or at is None:
        return "-"
    try:
        value = watch.value(series.history, at)
    except UsageError:
        return "error"
    if value is None:
        return "-"
    return str(int(value)) if value.is_integer() else f"{value:.3f}"
