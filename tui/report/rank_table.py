"""The ranks of a deployment side by side, under each routing: the report of `fdtrace replay --ranks`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fdtrace.recorder.printable import printable
from fdtrace.recorder.trace.column_values import Floats
from fdtrace.replayer.rank_experiment import RankRun
from fdtrace.replayer.rank_figures import (
    Imbalance,
    RankFigures,
    figures_of_ranks,
    imbalance_of,
    loads_over_time,
)
from fdtrace.tui.report.characters import has_blocks
from fdtrace.tui.report.latency_table import latencies_table

HEADINGS = (
    "re-\nquests",
    "steps",
    "prefill\ntokens",
    "decode\ntokens",
    "of\nall",
    "running\nmean",
    "waiting\nmean/max",
    "busy",
    "pre-\nempted",
)
BARS, ASCII_BARS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
"""The characters of a line of bars, lowest first."""


def print_ranks(runs: Sequence[RankRun], console: Console) -> None:
    """Print each run with its ranks as a table, its ranks over time, and sentences on how uneven they are."""
    ascii = not has_blocks(console)
    for at, run in enumerate(runs):
        if at:
            console.print()
        figures = figures_of_ranks(run)
        console.print(_table(run, figures, ascii=ascii))
        if run.latency is not None or any(rank.latency is not None for rank in figures):
            named = [*((rank.rank, rank.latency) for rank in figures), ("all", run.latency)]
            console.print(latencies_table(named, ascii=ascii))
        width = max(20, min(console.width - 40, 100))
        for line in bar_lines(run, width, ascii=ascii):
            console.print(Text(printable(line)), soft_wrap=True)
        for sentence in rank_sentences(run, figures):
            console.print(Text(printable(f"{run.name}: {sentence}")), soft_wrap=True)
    for note in dict.fromkeys(note for run in runs for note in run.modelled):
        names = ", ".join(run.name for run in runs if note in run.modelled)
        console.print(Text(printable(f"{names}: {note}")), soft_wrap=True)


def _table(run: RankRun, figures: Sequence[RankFigures], *, ascii: bool) -> Table:
    table = Table(box=box.ASCII if ascii else box.SIMPLE_HEAD, show_edge=False, padding=0)
    title = run.name if run.routing in ("", run.name) else f"{run.name} ({run.routing})"
    table.add_column(printable(title), overflow="fold", max_width=24, min_width=8)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for rank in figures:
        table.add_row(Text(printable(rank.rank), "bold"), *_cells(rank))
    table.add_row(Text("all", "bold"), *_sums(figures))
    return table


def _cells(rank: RankFigures) -> list[str]:
    return [
        str(rank.num_requests),
        f"{rank.num_steps}{' HANGS' if rank.why_not_done else ''}",
        str(rank.num_prefill_tokens),
        str(rank.num_decode_tokens),
        f"{rank.share_of_tokens:.0%}",
        f"{rank.mean_running:.1f}",
        f"{rank.mean_waiting:.1f}/{rank.max_waiting}",
        f"{rank.busy_share:.0%}",
        str(rank.num_preemptions),
    ]


def _sums(figures: Sequence[RankFigures]) -> list[str]:
    return [
        str(sum(rank.num_requests for rank in figures)),
        str(sum(rank.num_steps for rank in figures)),
        str(sum(rank.num_prefill_tokens for rank in figures)),
        str(sum(rank.num_decode_tokens for rank in figures)),
        "",
        f"{sum(rank.mean_running for rank in figures):.1f}",
        f"{sum(rank.mean_waiting for rank in figures):.1f}",
        f"{np.mean([rank.busy_share for rank in figures]):.0%}" if figures else "-",
        str(sum(rank.num_preemptions for rank in figures)),
    ]


def bar_lines(run: RankRun, width: int, *, ascii: bool) -> Iterator[str]:
    """A line for each rank: its requests, running and waiting, over the time of all ranks."""
    loads = loads_over_time(run, width)
    highest = max((float(load.max(initial=0.0)) for load in loads), default=0.0)
    names = max((len(rank.name) for rank in run.ranks), default=0)
    for rank, load in zip(run.ranks, loads, strict=True):
        yield f"{rank.name:<{names}} |{_bars(load, highest, ascii=ascii)}| up to {load.max(initial=0.0):.1f} requests"


def _bars(load: Floats, highest: float, *, ascii: bool) -> str:
    letters = ASCII_BARS if ascii else BARS
    if highest <= 0:
        return letters[0] * len(load)
    heights = np.ceil(load / highest * (len(letters) - 1)).astype(int)
    return "".join(letters[height] for height in heights.tolist())


def rank_sentences(run: RankRun, figures: Sequence[RankFigures]) -> Iterator[str]:
    """How uneven the ranks are, and which of them did not come to their end."""
    imbalance = imbalance_of(run)
    yield imbalance_sentence(imbalance, figures)
    for rank in figures:
        if rank.why_not_done:
            yield f"{rank.rank} {rank.why_not_done}"
    if run.latency is not None and run.latency.num_steps_beyond:
        yield (
            f"{run.latency.num_steps_beyond} steps are larger than those that the time model was fitted from: "
            "extrapolated"
        )


def imbalance_sentence(imbalance: Imbalance, figures: Sequence[RankFigures]) -> str:
    """How uneven the ranks of a run are."""
    busiest = max(figures, key=lambda rank: rank.share_of_tokens)
    waited = (
        "no request waited in a queue"
        if not imbalance.waited_s
        else f"requests waited {imbalance.waited_s:.3g} s together in the queues, {imbalance.share_beside_room:.0%} of "
        "it while another rank had room"
    )
    return (
        f"{busiest.rank} ran {busiest.share_of_tokens:.0%} of all tokens, {imbalance.most_to_mean_tokens:.2f} times "
        f"the mean; {waited}"
    )
