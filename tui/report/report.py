"""The output of `fdtrace replay --report`, and of `--json` for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fdtrace.recorder.printable import printable
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.history.history import ORDERS, History
from fdtrace.replayer.history.outcome_figures import outcome_dict
from fdtrace.tui.panes.series import Series
from fdtrace.tui.report.characters import has_blocks
from fdtrace.tui.report.chart import tokens_chart
from fdtrace.tui.report.latency_table import latency_table
from fdtrace.tui.report.sentences import call_departure_lines, divergence_table, sentences, shared_sentences
from fdtrace.tui.theme import memory_size

if TYPE_CHECKING:
    from fdtrace.recorder.trace.standstill import Standstill


def render_report(
    recording: Recording,
    histories: Sequence[History],
    console: Console,
    standstill: Standstill | None = None,
) -> None:
    """Print the recording in a line or two, the formulas as a table, and a chart for each history.

    The report fits the console's width. It uses colours only if the console has them, and plain ASCII if the console's
    encoding has no block characters. So the text reads the same in a file or a pipe.

    Args:
        recording: what was recorded.
        histories: the recording as a history, and its replays.
        console: where to print.
        standstill: how the engine stood still at the end of the recording; None: it did not.
    """
    ascii = not has_blocks(console)
    dot = "-" if ascii else "·"
    for line in _head(recording, dot):
        console.print(Text(printable(line)), soft_wrap=True)
    if standstill is not None:
        console.print(Text(printable(f"HANGS: {standstill.sentence}"), "bold red"), soft_wrap=True)
    if not recording.num_steps:
        console.print(Text("no forward ran while it was recorded: there is nothing to replay"))
        return
    console.print()
    console.print(_table(histories, ascii=ascii))
    if any(history.outcome.latency is not None for history in histories):
        console.print()
        console.print(latency_table(histories, ascii=ascii))
    for history in histories:
        for sentence in sentences(history):
            console.print(Text(printable(f"{history.name}: {sentence}")))
        fidelity = history.outcome.fidelity
        if fidelity is not None and fidelity.calls is not None and fidelity.calls.departure is not None:
            for line in call_departure_lines(fidelity.calls.departure):
                console.print(Text(f"  {line}"))
        if fidelity is not None and fidelity.divergence is not None:
            console.print(divergence_table(fidelity.divergence, ascii=ascii))
    for sentence in shared_sentences(histories):
        console.print(Text(printable(sentence)))
    peak = max((history.outcome.peak_tokens for history in histories), default=0)
    for history in histories:
        _chart(history, console, dot, peak=peak, ascii=ascii)


def histories_json(
    recording: Recording, histories: Sequence[History], standstill: Standstill | None = None
) -> dict[str, Any]:
    """The same for programs: the engine's limits, each history's outcome, the numbers of its exceeded steps.

    Tokens, steps, bytes and shares as in `replayer.history.history.Outcome`; unknown values are None.
    """
    engine = recording.engine
    return {
        "engine": {
            "name": engine.name,
            "version": engine.version,
            "max_num_batched_tokens": engine.max_num_batched_tokens,
            "max_num_seqs": engine.max_num_seqs,
            "num_speculative_tokens": engine.num_speculative_tokens,
            "spec_method": engine.spec_method,
            "block_size": engine.block_size,
            "num_blocks": engine.num_blocks,
        },
        "num_steps": recording.num_steps,
        "standstill": None if standstill is None else standstill.as_dict(),
        "notes": list(recording.notes),
        "formulas": [
            {
                **outcome_dict(history),
                "exceeded_steps": history.columns["step"][history.exceeded].tolist(),
            }
            for history in histories
        ],
    }


def _head(recording: Recording, dot: str) -> list[str]:
    engine = recording.engine
    speculation = (
        f"num_speculative_tokens {engine.num_speculative_tokens} ({engine.spec_method})"
        if engine.spec_method
        else "no speculation"
    )
    sep = f" {dot} "
    limit = engine.max_num_batched_tokens
    over = int((recording.steps["num_tokens"] > limit).sum())
    exceeded = f"{over} of them over max_num_batched_tokens" if over else "none over max_num_batched_tokens"
    counted = (f"{recording.num_steps} steps", exceeded) if recording.num_steps else ("0 steps",)
    return [
        sep.join((f"{engine.name} {engine.version}".strip(), *counted)),
        sep.join(
            (
                f"max_num_batched_tokens {limit}",
                speculation,
                f"max_num_seqs {engine.max_num_seqs}",
                f"{engine.num_blocks} blocks of {engine.block_size} tokens",
            )
        ),
        *(f"note: {note}" for note in recording.notes),
    ]


HEADINGS = (
    "steps\nover",
    "by at\nmost",
    "peak\ntokens",
    "tokens\nrefused",
    "budget\nused",
    "steps",
    "preempted",
    "stalls",
    "memory",
)


def _table(histories: Sequence[History], *, ascii: bool) -> Table:
    """One row for each history: what it exceeds, what it wastes, and its other figures, in that order."""
    lines = box.ASCII if ascii else box.SIMPLE_HEAD
    table = Table(box=lines, show_edge=False, padding=0)
    table.add_column("formula", overflow="fold", max_width=40)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True, overflow="fold")
    for history in histories:
        table.add_row(*_cells(history))
    return table


def _how(history: History) -> str:
    """How the history was made. For rescheduled requests, also how calls and forwards followed each other."""
    order = history.outcome.order
    return history.how if order is None else f"{history.how}, {ORDERS[order]}"


def _cells(history: History) -> list[Text]:
    outcome = history.outcome
    bad = "bold red" if outcome.num_exceeded else ""
    refused = outcome.num_refused_tokens
    memory = (
        outcome.allocated_high_water if outcome.reserved_high_water is None else outcome.reserved_high_water
    )
    name = Text(printable(history.name), "bold")
    if history.how != history.name:
        name.append(f"\n{_how(history)}", "not bold dim")
    steps = Text(str(outcome.num_steps))
    if outcome.hang is not None:
        steps.append("\nHANGS", "bold red")
    elif outcome.cut is not None:
        steps.append("\nCUT", "bold red")
    elif outcome.num_unfinished:
        steps.append(f"\n{outcome.num_unfinished} left")
    return [
        name,
        Text(str(outcome.num_exceeded), bad),
        Text(f"+{outcome.max_excess}" if outcome.num_exceeded else "-", bad),
        Text(str(outcome.peak_tokens), bad),
        Text("-" if refused is None else str(refused)),
        Text(f"{outcome.budget_use:.0%}"),
        steps,
        Text(str(outcome.num_preemptions)),
        Text(str(outcome.num_stalls)),
        Text("-" if memory is None else memory_size(memory)),
    ]


def _chart(history: History, console: Console, dot: str, *, peak: int, ascii: bool) -> None:
    console.print()
    series = Series(history)
    outcome = history.outcome
    over = (
        f"{outcome.num_exceeded} of {outcome.num_steps} steps exceed"
        if outcome.num_exceeded
        else "never exceeds"
        if outcome.num_steps
        else "no step under"
    )
    how = "" if history.how == history.name else f" {dot} {_how(history)}"
    title = Text(printable(f"{history.name}{how} {dot} "), "bold")
    title.append(
        f"{over} the limit of {history.limit} tokens a step", "bold red" if outcome.num_exceeded else "bold"
    )
    console.print(title)
    if not len(series):
        console.print(Text("no steps"))
        return
    text = tokens_chart(series, max(30, min(console.width, 200)), peak=peak, ascii=ascii)
    console.print(Text.from_ansi(text), soft_wrap=True)
