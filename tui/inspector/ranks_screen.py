"""All ranks of a deployment under each routing, as a dialog. A rank's line leads to the moment of its longest queue."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from fdtrace.recorder.printable import printable
from fdtrace.replayer.history.latency import Percentiles
from fdtrace.replayer.rank_experiment import RankHistory, RankRun
from fdtrace.replayer.rank_figures import RankFigures, figures_of_ranks, imbalance_of
from fdtrace.tui.inspector.story_screen import StoryScreen
from fdtrace.tui.report.rank_table import bar_lines, imbalance_sentence
from fdtrace.tui.theme import Look

BARS_WIDTH = 56


class RanksScreen(StoryScreen):
    """Its result is the step to go to, or None. `show` gives it the runs that have been computed since."""

    def __init__(
        self, runs: Sequence[RankRun], engine_id: int, step: int, look: Look, ascii: bool, classes: str = ""
    ) -> None:
        """`engine_id`: the engine whose steps the screen shows."""
        super().__init__((), step, look, classes=classes)
        self.runs, self.engine_id, self.ascii = list(runs), engine_id, ascii

    @property
    def heading(self) -> str:
        """The first line of the dialog."""
        count = len(self.runs[0].ranks) if self.runs else 0
        return f"{count} ranks, their requests over time"

    def show(self, runs: Sequence[RankRun]) -> None:
        """Show these runs."""
        self.runs = list(runs)
        if not self.is_mounted:
            return
        options = self.query_one(OptionList)
        highlighted = options.highlighted
        lines = self.lines()
        self._steps = [step for step, _ in lines]
        options.clear_options()
        options.add_options([Option(Content(printable(text)), disabled=step is None) for step, text in lines])
        options.highlighted = highlighted

    def lines(self) -> list[tuple[int | None, str]]:
        """Its other lines, each with the step that it leads to; None: it leads to no step."""
        shown: list[tuple[int | None, str]] = []
        for run in self.runs:
            figures = figures_of_ranks(run)
            shown += [(None, run.name), (None, f"  {imbalance_sentence(imbalance_of(run), figures)}")]
            bars = list(bar_lines(run, BARS_WIDTH, ascii=self.ascii))
            for rank, one, bar in zip(run.ranks, figures, bars, strict=True):
                shown += [(self._moment(rank), f"  {rank_line(one)}"), (None, f"  {bar}")]
            shown += [(None, f"  {note}") for note in run.modelled]
            shown.append((None, ""))
        return shown

    def _moment(self, rank: RankHistory) -> int | None:
        """The step of the screen's own engine at the moment at which most requests waited at a rank."""
        own = next((one for one in self.runs[0].ranks if one.engine.engine_id == self.engine_id), None)
        if own is None or not len(own.starts_us) or not len(rank.starts_us):
            return None
        moment = rank.starts_us[int(np.argmax(rank.history.columns["num_waiting"]))]
        entry = max(0, int(np.searchsorted(own.starts_us, moment, side="right")) - 1)
        return int(own.history.columns["step"][entry])


def rank_line(rank: RankFigures) -> str:
    """A rank in one line."""
    parts = [
        f"{rank.rank}: {rank.num_requests} requests",
        f"{rank.share_of_tokens:.0%} of tokens",
        f"busy {rank.busy_share:.0%}",
        f"waiting {rank.mean_waiting:.1f}, most {rank.max_waiting}",
    ]
    if rank.num_preemptions:
        parts.append(f"{rank.num_preemptions} preempted")
    if rank.latency is not None:
        parts.append(f"TTFT {_two(rank.latency.ttft_us)} ms")
    return ", ".join(parts)


def _two(values: Percentiles) -> str:
    return "/".join("-" if value is None else f"{value / 1000:.3g}" for value in (values.p50, values.p95))
