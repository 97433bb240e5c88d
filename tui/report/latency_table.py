"""How long clients waited in each history, as a table of the report."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from fdtrace.recorder.printable import printable
from fdtrace.replayer.history.history import History
from fdtrace.replayer.history.latency import Latencies, Percentiles

HEADINGS = (
    "TTFT ms\np50/p95/p99",
    "ITL ms\np50/p95/p99",
    "latency s\np50/p95/p99",
    "tokens\n/s",
    "busy",
)


def latency_table(histories: Sequence[History], *, ascii: bool) -> Table:
    """One row for each history: recorded values for the recording, values of the time model for replays by time."""
    return latencies_table([(history.name, history.outcome.latency) for history in histories], ascii=ascii)


def latencies_table(named: Sequence[tuple[str, Latencies | None]], *, ascii: bool) -> Table:
    """One row for each name; None: not known."""
    table = Table(box=box.ASCII if ascii else box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("time", overflow="fold", max_width=30)
    has_goodput = any(latency and latency.goodput_per_s is not None for _, latency in named)
    for heading in (*HEADINGS, *(("good\nreq/s",) if has_goodput else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, latency in named:
        cells = (
            ["-"] * (len(HEADINGS) + has_goodput)
            if latency is None
            else _cells(latency, has_goodput=has_goodput)
        )
        table.add_row(Text(printable(name), "bold"), *cells)
    return table


def _cells(latency: Latencies, *, has_goodput: bool) -> list[str]:
    cells = [
        _three(latency.ttft_us, 1e3),
        _three(latency.itl_us, 1e3),
        _three(latency.latency_us, 1e6),
        f"{latency.output_tokens_per_s:.4g}",
        f"{latency.busy_share:.0%}",
    ]
    return (
        [*cells, "-" if latency.goodput_per_s is None else f"{latency.goodput_per_s:.3g}"]
        if has_goodput
        else cells
    )


def _three(values: Percentiles, unit: float) -> str:
    return "/".join(
        "-" if value is None else f"{value / unit:.3g}" for value in (values.p50, values.p95, values.p99)
    )
