"""A history in a line: how often it exceeds, by how much at most, steps to finish, whether it hangs."""

from __future__ import annotations

from fdtrace.tui.jobs import Job
from fdtrace.tui.series import Series
from fdtrace.tui.style import Glyphs, tokens


def figures(job: Job, series: Series | None, glyphs: Glyphs) -> list[str]:
    """What the border says below, from the longest to the shortest."""
    if series is None:
        return [f"{job.state} {job.share:.0%}" if job.state == "running" else job.state]
    outcome = series.history.outcome
    count, steps, most = outcome.num_exceeded, outcome.num_steps, outcome.max_excess
    over, dot, mark = f"{glyphs.at_most} +{tokens(most)}", glyphs.dot, glyphs.exceeded
    hang = f" {dot} HANGS at {outcome.hang.step}" if outcome.hang else ""
    brief = f" {dot} HANGS" if outcome.hang else ""
    if outcome.cut is not None:
        hang, brief = f" {dot} CUT at {outcome.cut.step}", f" {dot} CUT"
    if not count:
        return [
            f"never exceeds the limit {dot} {steps} steps{hang}",
            f"never exceeds {dot} {steps} steps{hang}",
            f"0 of {steps} exceed{brief}",
            f"0/{tokens(steps)}{brief}",
        ]
    peak = f"peak {outcome.peak_tokens}"
    return [
        f"{mark} {count} of {steps} steps exceed, by {most} at most {dot} {peak}{hang}",
        f"{mark} {count} of {steps} exceed, {over}{hang}",
        f"{mark} {count}/{steps} exceed {over}{brief}",
        f"{mark} {count}/{steps} {over}{brief}",
        f"{mark}{tokens(count)}/{tokens(steps)} +{tokens(most)}{brief}",
        f"{mark}{tokens(count)} +{tokens(most)}",
    ]
