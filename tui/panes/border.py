"""A history in one line: how often it exceeds, by how much at most, its steps, whether it hangs."""

from __future__ import annotations

from fdtrace.tui.panes.jobs import Job
from fdtrace.tui.panes.series import Series
from fdtrace.tui.theme import Glyphs, tokens


def figures(job: Job, series: Series | None, glyphs: Glyphs) -> list[str]:
    """The texts for the lower border, from the longest to the shortest."""
    if series is None:
        return [f"{job.state} {job.share:.0%}" if job.state == "running" else job.state]
    outcome = series.history.outcome
    count, steps, max_excess = outcome.num_exceeded, outcome.num_steps, outcome.max_excess
    excess_text, dot, mark = f"{glyphs.at_most} +{tokens(max_excess)}", glyphs.dot, glyphs.exceeded
    hang = f" {dot} HANGS at {outcome.hang.step}" if outcome.hang else ""
    short_hang = f" {dot} HANGS" if outcome.hang else ""
    if outcome.cut is not None:
        hang, short_hang = f" {dot} CUT at {outcome.cut.step}", f" {dot} CUT"
    if not count:
        return [
            f"never exceeds the limit {dot} {steps} steps{hang}",
            f"never exceeds {dot} {steps} steps{hang}",
            f"0 of {steps} exceed{short_hang}",
            f"0/{tokens(steps)}{short_hang}",
        ]
    peak = f"peak {outcome.peak_tokens}"
    return [
        f"{mark} {count} of {steps} steps exceed, by {max_excess} at most {dot} {peak}{hang}",
        f"{mark} {count} of {steps} exceed, {excess_text}{hang}",
        f"{mark} {count}/{steps} exceed {excess_text}{short_hang}",
        f"{mark} {count}/{steps} {excess_text}{short_hang}",
        f"{mark}{tokens(count)}/{tokens(steps)} +{tokens(max_excess)}{short_hang}",
        f"{mark}{tokens(count)} +{tokens(max_excess)}",
    ]
