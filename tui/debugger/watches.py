"""Watches: expressions whose values are shown. Nothing here needs a terminal."""

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
        """Add a watch, or remove it if it exists. Returns whether it exists afterwards.

        UsageError if the text is no expression.
        """
        new = Condition(text)
        for watch in self.all:
            if watch.text == new.text:
                self.all.remove(watch)
                return False
        self.all.append(new)
        return True

    def values(self, series: Sequence[Series | None], step: int) -> list[tuple[str, list[str]]]:
        """The text of each watch, and its value at a step in each history; `-` where it has none."""
        return [(watch.text, [_value(watch, history, step) for history in series]) for watch in self.all]


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
