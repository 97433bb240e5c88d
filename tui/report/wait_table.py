"""Who waited, how long and behind whom in each history: the part of the report that `--waits` adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fdtrace.recorder.printable import printable
from fdtrace.replayer.analysis.wait_figures import (
    BlockingRequest,
    WaitTotals,
    blocking_requests,
    request_rows,
    totals_of,
)
from fdtrace.replayer.analysis.waiting import Waits
from fdtrace.replayer.history.latency import Percentiles
from fdtrace.tui.report.characters import has_blocks

HEADINGS = (
    "queued",
    "steps queued\np50/p95/max",
    "steps\nblocked",
    "steps\nbehind",
    "prefills\nstarved",
    "restarts",
    "tokens\nagain",
    "never\nran",
)
SHOWN = 3
"""Heads of the queue and longest waits that are told of each history."""
MOST_NAME = 40
WAITED_FOR = (
    ("queued", "to run first"),
    ("not_joined", "to join, with its blocks"),
    ("joined", "to run first, joined"),
    ("preempted", "to run again after a preemption"),
    ("prefill", "for a chunk"),
    ("decode", "for a decode"),
    ("stopped", "to the end"),
)


def print_waits(waits: Sequence[Waits], console: Console) -> None:
    """Print a table with a row for each history, and a few sentences on each: who blocked, who waited longest."""
    totals = [totals_of(history) for history in waits]
    console.print()
    console.print(_table([history.name for history in waits], totals, ascii=not has_blocks(console)))
    for history, total in zip(waits, totals, strict=True):
        for sentence in wait_sentences(history, total):
            console.print(Text(printable(f"{history.name}: {sentence}")), soft_wrap=True)


def _table(names: Sequence[str], totals: Sequence[WaitTotals], *, ascii: bool) -> Table:
    table = Table(box=box.ASCII if ascii else box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("waits", overflow="fold", max_width=24)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True, overflow="fold")
    for name, total in zip(names, totals, strict=True):
        table.add_row(Text(printable(name), "bold"), *_cells(total))
    return table


def _cells(total: WaitTotals) -> list[str]:
    queued = f"{_one(total.queued_steps.p50)}/{_one(total.queued_steps.p95)}/{total.max_queued_steps}"
    if total.queued_us.p50 is not None:
        queued += f"\n{_three(total.queued_us, 1e3)} ms"
    return [
        f"{total.num_queued}/{total.num_requests}",
        queued,
        str(sum(total.steps_blocked.values())),
        str(total.num_steps_behind),
        str(total.num_starved_prefills),
        str(total.num_restarts),
        str(total.num_discarded_tokens),
        str(total.num_never_ran),
    ]


def _one(value: float | None, unit: float = 1.0) -> str:
    if value is None:
        return "-"
    return f"{value / unit:.0f}" if unit == 1 or value / unit >= 100 else f"{value / unit:.3g}"


def _three(values: Percentiles, unit: float) -> str:
    return "/".join(_one(value, unit) for value in (values.p50, values.p95, values.p99))


def wait_sentences(waits: Waits, total: WaitTotals) -> list[str]:
    """What a table cannot hold: why the head waited, which heads blocked most, who waited longest, what was lost."""
    why, *others = total_sentences(total)
    return [
        why,
        *map(head_sentence, blocking_requests(waits)[:SHOWN]),
        *map(longest_sentence, request_rows(waits)[:SHOWN]),
        *others,
    ]


def total_sentences(total: WaitTotals) -> list[str]:
    """Why the head of the queue waited; then what of the rest happened at all, a sentence each."""
    blocked = sum(total.steps_blocked.values())
    reasons = ", ".join(f"{reason} in {steps}" for reason, steps in total.steps_blocked.items())
    why = f": {reasons}" if reasons else ""
    sentences = [f"the head of the queue was not admitted in {_count(blocked, 'step')}{why}"]
    if total.num_restarts:
        sentences.append(
            f"{_count(total.num_restarts, 'prefill')} of {_count(total.num_victims, 'request')} began again after a "
            f"preemption: {_count(total.num_discarded_tokens, 'token')} computed again, "
            f"{total.share_computed_again:.1%} of all prefill tokens"
        )
    if total.num_starved_prefills:
        sentences.append(
            f"{_count(total.num_starved_prefills, 'prefill')} got no chunk between two chunks, for "
            f"{_count(total.max_prefill_gap, 'step')} in a row at most"
        )
    if total.num_paused_decodes:
        sentences.append(
            f"{_count(total.num_paused_decodes, 'decode')} did not run between two steps, for "
            f"{_count(total.max_decode_gap, 'step')} in a row at most"
        )
    if total.num_not_joined:
        blocks = (
            "" if total.max_blocks_not_joined is None else f", {total.max_blocks_not_joined} at once at most"
        )
        sentences.append(
            f"{_count(total.num_not_joined, 'request')} held KV blocks and had not joined{blocks}; "
            f"{total.num_never_joined} of them never joined"
        )
    if total.num_stopped:
        sentences.append(f"{_count(total.num_stopped, 'request')} had run, had not ended, and ran no more")
    return sentences


def head_sentence(head: BlockingRequest) -> str:
    """How long a request was the head of the queue, what it lacked, and who waited behind it."""
    lacked = f", {_count(head.max_missing_blocks, 'block')} at most" if head.max_missing_blocks else ""
    why = f" ({head.not_admitted}{lacked})" if head.not_admitted else ""
    behind = (
        f"; {head.num_behind} at most waited behind it, {_count(head.num_steps_behind, 'step')} together"
        if head.num_behind
        else ""
    )
    steps = _count(head.num_steps, "step")
    return f"{_name(head.request_id)} was the head for {steps} from {head.first_step}{why}{behind}"


def longest_sentence(row: Mapping[str, Any]) -> str:
    """How long a request waited, for what, and behind whom; `row` is one of `request_rows`."""
    parts = [f"{row[f'{kind}_steps']} {text}" for kind, text in WAITED_FOR if row[f"{kind}_steps"]]
    steps = row["num_behind_steps"]
    behind = "" if row["behind"] is None else f"; {_count(steps, 'step')} of it behind {_name(row['behind'])}"
    return f"{_name(row['request_id'])} waited {_count(row['num_steps'], 'step')}: {', '.join(parts)}{behind}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _name(request_id: str) -> str:
    return printable(request_id, MOST_NAME)
