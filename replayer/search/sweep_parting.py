"""The step at which two variants of a sweep part: up to it they decide the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fdtrace.replayer.search.sweep_grid import SweepRow, SweepValue, VariedSetting

PARTING_COLUMNS = (
    *("num_prefill_tokens", "num_decode_tokens", "num_running", "num_waiting", "num_preempted"),
    "num_stalled",
)
"""What two variants are compared by. Free blocks are not: with another number of blocks they differ from the first step
on, and decide nothing there.
"""
WHY_NOT_ADMITTED: Mapping[str, str] = {
    "budget": "the budget is used up",
    "blocks": "too few blocks are free",
    "slots": "all sequences are taken",
    "preemption": "a request was preempted",
    "formula": "the formula refuses it",
}


@dataclass(frozen=True)
class VariantSplit:
    """Where two variants part. Values of the first variant come first; None: it has no such step any more."""

    index: int
    """The entry of the step."""
    step: int
    differing: tuple[tuple[str, int | None, int | None], ...]
    """(column, its two values) of each of `PARTING_COLUMNS` that differs."""
    not_admitted: tuple[str, str] = ("", "")
    """Why the head of the waiting queue stayed, in both; empty: it did not, or it is not known."""

    @property
    def ends_one(self) -> bool:
        """Whether they differ in that one of them is done."""
        return any(value is None for _, *values in self.differing for value in values)

    def why(self, which: Literal[0, 1]) -> str:
        """Why the first or the second admits no more in that step; empty if the other one does not either, for the same
        reason.
        """
        reason = self.not_admitted[which]
        return "" if self.not_admitted[1 - which] == reason else WHY_NOT_ADMITTED.get(reason, "")


def variant_split_of(
    one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]]
) -> VariantSplit | None:
    """The first step in which two histories differ, from their columns; None: in no step."""
    lengths = len(one["step"]), len(other["step"])
    shared = min(lengths)
    differs = np.zeros(shared, bool)
    for name in PARTING_COLUMNS:
        differs |= one[name][:shared] != other[name][:shared]
    found = np.flatnonzero(differs)
    if not len(found):
        if lengths[0] == lengths[1]:
            return None
        longer = one if lengths[0] > lengths[1] else other
        tokens = int(longer["num_prefill_tokens"][shared] + longer["num_decode_tokens"][shared])
        values = (tokens, None) if longer is one else (None, tokens)
        return VariantSplit(shared, int(longer["step"][shared]), (("num_tokens", *values),))
    at = int(found[0])
    differing = tuple(
        (name, int(one[name][at]), int(other[name][at]))
        for name in PARTING_COLUMNS
        if one[name][at] != other[name][at]
    )
    reasons = tuple(
        str(columns["not_admitted"][at]) if "not_admitted" in columns else "" for columns in (one, other)
    )
    return VariantSplit(at, int(one["step"][at]), differing, (reasons[0], reasons[1]))


def neighbours_of(varied: Sequence[VariedSetting], row: SweepRow) -> list[tuple[str, dict[str, SweepValue]]]:
    """The combinations that differ from a result by the next value of one setting: its name, and all settings."""
    own = {setting.name: row[setting.name] for setting in varied}
    found: list[tuple[str, dict[str, SweepValue]]] = []
    for setting in varied:
        values = _in_order(setting.values)
        at = values.index(own[setting.name])  # type: ignore[arg-type]  # a result has the values of its settings
        found += [
            (setting.name, {**own, setting.name: values[i]})  # type: ignore[dict-item]
            for i in (at - 1, at + 1)
            if 0 <= i < len(values)
        ]
    return found


def _in_order(values: Sequence[SweepValue]) -> list[SweepValue]:
    """Numbers by size, texts as they were given."""
    numbers = [value for value in values if not isinstance(value, str)]
    return sorted(numbers) if len(numbers) == len(values) else list(values)
