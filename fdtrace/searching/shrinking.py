"""Shrinks a case with progress on stderr, until it is small or the time is over."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fdtrace.progress import Progress

if TYPE_CHECKING:
    from fdtrace.replayer.search.draw_case import SearchCase
    from fdtrace.replayer.search.falsifier import FaultyCase
    from fdtrace.replayer.search.findings import Finding
    from fdtrace.replayer.search.shrink_case import Shrinker
    from fdtrace.searching.search_options import SearchPlan


def shrunk(
    found: FaultyCase,
    searched: SearchPlan,
    progress: Progress,
    *,
    most_runs: int,
    seconds: float | None = None,
) -> Shrinker:
    """The smallest case with the fault of `found`: the same kind, with the same cause. Sizes that `-w` gives stay.

    Args:
        found: the case, and the fault that it shows.
        searched: what runs it.
        progress: shows how small it is.
        most_runs: how many smaller cases may be run.
        seconds: how long it may take; None: as long as it takes.
    """
    from fdtrace.replayer.search.shrink_case import Shrinker
    from fdtrace.searching.search_report import size_text

    end = None if seconds is None else time.monotonic() + seconds

    def smaller(case: SearchCase, finding: Finding, num_runs: int) -> None:
        if progress.terminal:
            progress.update(
                f"shrinking: {size_text(case)}, {finding.kind} at step {finding.step}, {num_runs} runs"
            )

    shrinker = Shrinker(
        found.case,
        found.finding,
        searched.target.same_as(found.case, found.finding),
        fixed=searched.fixed,
        most_runs=most_runs,
        shrunk=smaller,
        stop=lambda: end is not None and time.monotonic() >= end,
    )
    shrinker.run()
    progress.clear()
    return shrinker
