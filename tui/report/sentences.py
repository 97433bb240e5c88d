"""The sentences of a report: why a replay hangs, how far it can be trusted, when a device would run out of memory."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fdtrace.recorder.printable import printable
from fdtrace.replayer.history.history import (
    CallDeparture,
    Divergence,
    Fidelity,
    History,
    Order,
    PipelineFigures,
)
from fdtrace.replayer.recorded.memory_fit import EXPLAINED, MemoryFit
from fdtrace.replayer.recorded.step_durations import Clock
from fdtrace.tui.theme import memory_size


def sentences(history: History) -> list[str]:
    """The facts about one history that do not fit into a cell of the table."""
    outcome = history.outcome
    lines = []
    if outcome.why_not_done:
        lines.append(outcome.why_not_done)
    if outcome.num_rejected or outcome.modelled:
        lines += outcome.modelled
    if outcome.latency is not None and outcome.latency.num_steps_beyond:
        lines.append(
            f"{outcome.latency.num_steps_beyond} of {outcome.num_steps} steps hold more than any recorded one: their "
            "times are extrapolated"
        )
    if outcome.fidelity is not None:
        lines.append(_fidelity(outcome.fidelity))
    if outcome.pipeline is not None:
        lines += _pipeline(outcome.pipeline)
    if outcome.device_bytes is not None:
        lines.append(_device(history))
    return lines


def shared_sentences(histories: Sequence[History]) -> list[str]:
    """The facts that all histories share: how requests arrived, and what memory was fitted from."""
    clocks = [history.outcome.clock for history in histories if history.outcome.clock is not None]
    fits = [history.outcome.memory for history in histories if history.outcome.memory is not None]
    clock_lines = dict.fromkeys(_clock(clock) for clock in clocks)
    return [*clock_lines, *_orders(histories), *map(_memory, fits[:1])]


def _fidelity(fidelity: Fidelity) -> str:
    equal, steps = fidelity.num_equal, fidelity.num_steps
    text = f"fidelity {fidelity.share:.1%}: {equal} of {steps} recorded steps reproduced"
    if fidelity.calls is not None:
        calls = fidelity.calls
        text += f", {calls.share:.1%}: {calls.num_equal} of {calls.num_calls} scheduling calls"
    if fidelity.num_left_out:
        text += f"; the last {fidelity.num_left_out} steps are left out, as their calls were not recorded"
    if fidelity.first_divergence is not None:
        text += f"; first departs at step {fidelity.first_divergence}"
    if fidelity.divergence is not None:
        return text
    return text + (f" ({fidelity.explanation})" if fidelity.explanation else "")


HOW_ORDERED: dict[Order, str] = {
    "recorded": "in the recorded order: calls and forwards as the engine met them, by what each call knew",
    "pipeline": "as a pipeline: worker, token processor and scheduling loop each on their recorded times, requests as "
    "clients sent them",
    "lockstep": "in lockstep: a forward after each call, which knows its output",
}


def _orders(histories: Sequence[History]) -> list[str]:
    """How each replay was made, unless all were in lockstep."""
    names: dict[Order, list[str]] = {}
    for history in histories:
        if history.outcome.order is not None:
            names.setdefault(history.outcome.order, []).append(history.name)
    if not names.keys() - {"lockstep"}:
        return []
    return [f"{', '.join(names[order])} {how}" for order, how in HOW_ORDERED.items() if order in names]


def _pipeline(figures: PipelineFigures) -> list[str]:
    """The time to first token that a replay predicts, and what makes it unsure."""
    text = (
        f"time to first token {figures.first_token_p50_ms:,.0f} ms at the median, "
        f"{figures.first_token_p95_ms:,.0f} ms at p95"
    )
    if figures.is_saturated:
        text += (
            f"; unsure, as most of it is waiting: {figures.first_token_p50_slower_ms:,.0f} ms at the median "
            "were forwards 2% slower"
        )
    out = [text]
    if figures.is_disturbed:
        out.append(
            f"the recorded host stood still for {figures.disturbed:.0%} of the time: its times are not the engine's "
            "alone; record on a quiet one"
        )
    return out


def call_departure_lines(departure: CallDeparture) -> list[str]:
    """The first call whose decision differs in the replay, and what came before it."""
    lines = [f"first departs at call {departure.call}"]
    lines += [
        f"{name}: {recorded} recorded, {replayed} replayed"
        for name, recorded, replayed in departure.differences
    ]
    lines += [f"before it: {event}" for event in departure.before]
    return lines + [f"the replay decided: {reason}" for reason in departure.reasons]


def _device(history: History) -> str:
    outcome = history.outcome
    size = memory_size(outcome.device_bytes or 0)
    if outcome.out_of_memory_step is None:
        return f"a device of {size} would have held every step"
    return f"a device of {size} would have run out at step {outcome.out_of_memory_step}"


def _clock(clock: Clock) -> str:
    if clock.durations is None:
        return "clock: requests arrive by recorded step"
    if clock.model is not None:
        return f"clock: requests arrive by recorded time. {clock.model.text}"
    fit = clock.durations
    return (
        f"clock: requests arrive by recorded time; a step takes {fit.base_us:.0f} us, {fit.us_per_prefill_token:.2f} "
        f"us a prefill token, {fit.us_per_decode_token:.2f} us a decode token (fitted from {fit.num_steps} "
        f"steps that vary by {fit.variation:.0%}; R2 {fit.r_squared:.2f}, median error {fit.median_relative_error:.0%})"
    )


def _memory(fit: MemoryFit) -> str:
    if fit.explained < EXPLAINED:
        return (
            f"memory: only {fit.explained:.0%} of the growth of {fit.column} came at steps larger than all before, so "
            "tokens do not explain it: the memory of other budgets is not known"
        )
    if not fit.bytes_per_token and not fit.cache_read:
        return f"memory: {fit.column} stays at {memory_size(fit.floor_bytes)}, whatever a step runs"
    other = f"; {memory_size(fit.other_bytes)} more of the device are in use" if fit.other_bytes else ""
    error = f"(error {memory_size(fit.rms_error_bytes)} rms, {memory_size(fit.max_error_bytes)} at most)"
    if fit.cache_read:
        return f"{_needed_memory(fit)} {error}{other}"
    return (
        f"memory: {memory_size(round(fit.bytes_per_token))} a token of the largest step so far, fitted from "
        f"{fit.column} at {fit.num_points} new maxima up to {fit.max_tokens} tokens {error}{other}"
    )


def _needed_memory(fit: MemoryFit) -> str:
    """A fit to tokens and KV cache reads."""
    tokens = f"{memory_size(round(fit.bytes_per_token))} a token of a step"
    if not fit.extrapolates:
        tokens = f"nothing known of the tokens of a step, which were {fit.max_tokens} whenever it grew"
    budget = (
        f", {memory_size(round(fit.bytes_per_budget_token))} a token of budget"
        if fit.bytes_per_budget_token
        else ""
    )
    return (
        f"memory: what the tensors of a step need: {tokens}, {memory_size(round(fit.bytes_per_cache_read_token))} a KV "
        f"cache token that it reads{budget}, fitted from {fit.column} at {fit.num_points} steps that needed more than "
        "all before; the allocator may hold more, and gives it back before it fails"
    )


def divergence_table(divergence: Divergence, *, ascii: bool) -> RenderableType:
    """A step recorded and replayed, side by side; the state before, and the rule that differed."""
    table = Table(box=box.ASCII if ascii else box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column(f"step {divergence.step}")
    table.add_column("recorded", justify="right")
    table.add_column("replayed", justify="right")
    for name, recorded, replayed in divergence.compared:
        mark = "bold" if recorded != replayed else "dim"
        table.add_row(
            Text(printable(name), mark),
            Text(printable(recorded), mark),
            Text(f"{printable(replayed)}{' <' if mark == 'bold' else '  '}", mark),
        )
    lines = []
    if divergence.before:
        lines.append("before it: " + ", ".join(f"{name} {value}" for name, value in divergence.before))
    lines.append(f"the rule that differed: {divergence.rule}")
    lines += [f"recorded alone: {row}" for row in divergence.only_recorded]
    lines += [f"replayed alone: {row}" for row in divergence.only_replayed]
    lines += [f"the replay decided: {reason}" for reason in divergence.reasons]
    return Padding(Group(table, *(Text(printable(line)) for line in lines)), (0, 0, 0, 2))
