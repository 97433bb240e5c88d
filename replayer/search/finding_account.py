"""The step at which a case shows a fault, as arithmetic: its budget, what was handed out, what ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.config import Policy
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.formulas.variables import VARIABLES, Variables
from fdtrace.replayer.formulas.worked_example import budget_and_charge, substitute_values
from fdtrace.replayer.model.state import SchedulerFailed
from fdtrace.replayer.replay.simulation import Simulation, Step
from fdtrace.replayer.search.findings import Finding
from fdtrace.replayer.search.watched_formula import WatchedFormula
from fdtrace.replayer.workload.from_case import workload_from_case

MOST_ROWS = 8


class _Seen(WatchedFormula):
    """A formula that remembers the variables of its last call."""

    last: Variables | None = None

    def budget(self, v: Variables) -> int:
        self.last = replace(v)
        return super().budget(v)


def account_lines(case: Mapping[str, Any], finding: Finding, formula: Formula, policy: Policy) -> list[str]:
    """The arithmetic of the finding's step, a line each: budget, charge, chunks, decodes, reasons."""
    seen = _Seen(formula)
    simulation = Simulation(workload_from_case(case), seen, policy, explain=True)
    step: Step | None = None
    while simulation.step <= finding.step and not simulation.done:
        try:
            step = simulation.run_step()
        except (SchedulerFailed, UsageError):
            break
    if seen.last is None:
        return []
    lines = [_budget_line(formula, seen.last)]
    if step is not None and step.number == finding.step:
        lines += _step_lines(step, formula.charge(seen.last), simulation.workload.config.num_draft_tokens)
    return lines


def _budget_line(formula: Formula, v: Variables) -> str:
    try:
        budget = formula.budget(v)
    except UsageError as error:
        return f"budget: {error.what}"
    if not formula.text:
        return f"budget: {budget}"
    worked = substitute_values(
        budget_and_charge(formula.text)[0], {name: getattr(v, name) for name in VARIABLES}
    )
    return f"budget: {worked.text} = {' = '.join(worked.lines)}"


def _step_lines(step: Step, charge: int, drafts: int) -> list[str]:
    decision, forward = step.decision, step.forward
    lines = [
        f"charge: {charge} for each running decode; {decision.num_running_decodes} decode when the call begins"
    ]
    shown = [f"{name} {start} to {end}" for name, start, end in decision.chunks[:MOST_ROWS]]
    more = len(decision.chunks) - len(shown)
    if shown:
        lines.append(f"chunks: {', '.join(shown)}{f' and {more} more' if more else ''}")
    lines.append(
        f"forward: {forward.num_prefill_tokens} tokens of prefills + {forward.num_decodes} decodes of 1 + {drafts} "
        f"= {forward.num_tokens} tokens"
    )
    if forward.stalled:
        lines.append(f"stalled: {', '.join(forward.stalled[:MOST_ROWS])}")
    lines += [f"because: {reason.text}" for reason in decision.reasons[:MOST_ROWS]]
    if decision.not_admitted:
        lines.append(f"the head of the queue waits: {decision.not_admitted}")
    lines.append(
        f"after the call: {decision.num_running} running, {decision.num_waiting} waiting, "
        f"{decision.num_free_blocks} blocks free"
    )
    return lines
