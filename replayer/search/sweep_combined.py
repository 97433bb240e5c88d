"""One result of several: the figures of a variant that was run on many traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fdtrace.replayer.search.sweep_grid import LARGER_IS_BETTER, SweepRow, SweepValue

SUMS = frozenset(("exceeded", "steps", "preempted", "stalls", "unfinished", "hangs", "rejected", "beyond"))
"""Figures that count something: of several traces, their sum."""


def combined_row(
    settings: Mapping[str, SweepValue], names: Sequence[str], rows: Sequence[SweepRow]
) -> SweepRow:
    """The result of one variant on all of several traces.

    Counts are added. Of every other figure it is the worst: the highest, or the lowest of a figure of which more is
    better (`LARGER_IS_BETTER`). A figure that one of the traces does not have is None.

    Args:
        settings: the variant.
        names: of the traces, for the reason why it is refused.
        rows: its result on each.
    """
    for name, row in zip(names, rows, strict=True):
        if row["refused"] is not None:
            return {**settings, "refused": f"{name}: {row['refused']}"}
    figures = dict.fromkeys(
        name for row in rows for name in row if name not in settings and name != "refused"
    )
    return {**settings, **{name: _combined(name, rows) for name in figures}, "refused": None}


def _combined(name: str, rows: Sequence[SweepRow]) -> float | None:
    values = [value for row in rows if isinstance(value := row.get(name), (int, float))]
    if len(values) < len(rows):
        return None
    if name in SUMS:
        return sum(values)
    return min(values) if name in LARGER_IS_BETTER else max(values)
