"""`fdtrace.replay`: a recording replayed under formulas, with the results for a program or a notebook."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fdtrace.formula_texts import FormulaLike
from fdtrace.library.engine_recording import EngineRecording, RowsInMemory
from fdtrace.library.named_runs import NamedRuns
from fdtrace.library.recording_worker import histories_beside, replay_orders
from fdtrace.library.replay_variants import VariantReplayer, VariantsLike, chosen_variants
from fdtrace.library.result_table import ResultTable
from fdtrace.library.run_waits import RunWaits, table_of_waits
from fdtrace.library.trace_handle import open_library_trace
from fdtrace.recorder.errors import UsageError
from fdtrace.replayer import Experiment, Formula, History, Outcome, StepRow, outcome_dict
from fdtrace.replayer.analysis.explainers import explainer_of
from fdtrace.replayer.analysis.fidelity import recorded_policy
from fdtrace.replayer.analysis.waiting import waits_of
from fdtrace.replayer.config import Policy, parse_policy
from fdtrace.replayer.experiment import policy_with
from fdtrace.replayer.history.history import ORDERS

FIGURES = (
    "num_exceeded", "max_excess", "peak_tokens", "num_refused_tokens", "budget_use", "num_steps", "num_preemptions",
    "num_stalls", "num_unfinished", "reserved_high_water", "allocated_high_water", "out_of_memory_step",
)  # fmt: skip
"""Figures of an outcome that a table of runs shows, in this order."""
MAY_BE_NEGATIVE = ("token_budget", "allowed")
"""Columns of a step in which -1 is a number that a formula computed."""


@dataclass(frozen=True)
class StepReasons:
    """Why a step of a replay ran what it ran: the state at its scheduling call, and each decision with its rule."""

    step: int
    num_tokens: int | None
    """Tokens that ran; None: the call handed out nothing (a hang)."""
    token_budget: int | None
    num_running: int
    """When the call began; this holds for the next two too."""
    num_waiting: int
    num_free_blocks: int
    not_admitted: str | None
    """Why the head of the queue was not admitted."""
    reasons: tuple[str, ...]
    """A line for each decision."""

    def __str__(self) -> str:
        ran = "nothing ran" if self.num_tokens is None else f"{self.num_tokens} tokens ran"
        head = f"step {self.step}: budget {self.token_budget}, {ran}"
        state = f"before it {self.num_running} running, {self.num_waiting} waiting, {self.num_free_blocks} free blocks"
        return "\n".join([head, state, *(f"  {reason}" for reason in self.reasons)])


class ReplayRun:
    """The replay of a recording under one formula, or the recording itself. `Runs` holds them by name."""

    def __init__(
        self, history: History, explain: Callable[[int], StepReasons] | None, rows: RowsInMemory | None
    ) -> None:
        self._history, self._explain, self._rows = history, explain, rows

    @property
    def name(self) -> str:
        """The formula's name; `recorded` for the recording."""
        return self._history.name

    @property
    def how(self) -> Literal["recorded", "as recorded", "rescheduled"]:
        """How it was computed."""
        return self._history.how

    @property
    def limit(self) -> int:
        """Tokens that a step may run: `max_num_batched_tokens`."""
        return self._history.limit

    @property
    def outcome(self) -> Outcome:
        """Its figures: tokens, steps and bytes, as their names say. None: not known."""
        return self._history.outcome

    @property
    def steps(self) -> ResultTable:
        """Its steps, one row each, ascending: `step`, `num_tokens`, `token_budget`, `num_prefill_tokens`,
        `num_decode_tokens`, `num_running`, `num_waiting`, `num_preempted`, `num_stalled`, `num_free_blocks` (tokens,
        requests, blocks), `reserved_bytes` if memory is known, and others.
        """
        return ResultTable(self._history.columns, title=self.name, may_be_negative=MAY_BE_NEGATIVE)

    @property
    def exceeded(self) -> ResultTable:
        """The steps over the limit, with `excess_tokens`."""
        at = self._history.exceeded
        columns = {name: values[at] for name, values in self._history.columns.items()}
        columns["excess_tokens"] = columns["num_tokens"] - self.limit
        return ResultTable(columns, title=f"{self.name}, exceeded", may_be_negative=MAY_BE_NEGATIVE)

    def requests(self, step: int) -> ResultTable:
        """The requests that ran in a step: `request_id`, `kind`, tokens, drafts, blocks; one row each.

        Raises:
            TraceError: the recording's rows are not in memory (there were more than 10 million).
        """
        return ResultTable.of_rows([_row(row) for row in self._history.rows(step)], title=f"step {step}")

    def request(self, request_id: str) -> ResultTable:
        """The steps in which a request ran, one row each: `step`, `kind`, `num_tokens`, `num_computed_tokens`,
        `num_draft_tokens`, `num_accepted_tokens`, `num_blocks`.

        Raises:
            UsageError: it ran in no step of this run.
            TraceError: the recording's rows are not in memory.
        """
        step_rows = self._steps_of(request_id)
        if not step_rows:
            raise UsageError(
                f"request {request_id!r} ran in no step of {self.name}",
                hint="recording.requests has all that were recorded",
            )
        rows = [{"step": step, **_row(row)} for step, row in step_rows]
        return ResultTable.of_rows(rows, title=f"{request_id} under {self.name}")

    def _steps_of(self, request_id: str) -> list[tuple[int, StepRow]]:
        if self._history.request_steps is not None:
            return self._history.request_steps(request_id)
        if self._rows is None:
            self._history.rows(
                int(self._history.columns["step"][0])
            )  # raises the error that says why there are no rows
            return []
        return [
            (step, row)
            for step in self._rows.steps_of(request_id)
            for row in self._history.rows(step)
            if row.request_id == request_id
        ]

    @property
    def waits(self) -> RunWaits:
        """Who waited, how long, for what and behind whom (docs/waiting.md).

        Raises:
            UsageError: it is not known what each request ran: an as-recorded run, or a recording whose rows are not in
                memory.
        """
        waits = waits_of(self._history)
        if waits is None:
            raise UsageError(
                f"the waits of {self.name} are not known",
                why="it does not hold what each request ran in each step",
                hint="a rescheduled replay has them; of a large recording: trace.sql('FROM waiting')",
            )
        return RunWaits(waits)

    def explain(self, step: int) -> StepReasons:
        """Why a step ran what it ran: its budget, and each decision with its rule.

        Args:
            step: its number; the step of a hang too.

        Raises:
            UsageError: it is not rescheduled, so it has no reasons; or it has no such step.
        """
        if self._explain is None:
            raise UsageError(
                f"{self.name} has no reasons",
                why="only a rescheduled replay decides by itself; here each step is as it was recorded",
                hint="replay(recording, [formula])[name].explain(step)",
            )
        return self._explain(step)

    def __repr__(self) -> str:
        outcome = self.outcome
        over = f"{outcome.num_exceeded} of {outcome.num_steps} steps exceed {self.limit} tokens"
        left = f", {outcome.why_not_done}" if outcome.why_not_done else ""
        description = self.how if outcome.order is None else f"{self.how}, {ORDERS[outcome.order]}"
        how = "" if self.how == self.name else f" ({description})"
        return f"<ReplayRun {self.name}{how}: {over}, by {outcome.max_excess} at most{left}>"


class Runs(NamedRuns[ReplayRun]):
    """The recording, under the name `recorded`, and its replays by the formulas' names, in the order given."""

    def table(self) -> ResultTable:
        """One row a run: `name`, `how`, `order` (as `Outcome`), steps over the limit, excess, peak, tokens refused,
        budget use (0 to 1), steps, preemptions, stalls, requests unfinished, bytes. `ends`: why it did not come to its
        end; None: it did.
        """
        rows = []
        for run in self._runs.values():
            figures = outcome_dict(run._history)
            rows.append(
                {
                    "name": run.name,
                    "how": run.how,
                    "order": run.outcome.order,
                    **{name: figures[name] for name in FIGURES},
                    "fidelity": None if run.outcome.fidelity is None else run.outcome.fidelity.share,
                    "ends": run.outcome.why_not_done or None,
                }
            )
        return ResultTable.of_rows(rows, title="runs")

    def waits(self) -> ResultTable:
        """One row for each run whose waits are known: its totals side by side, as `RunWaits.totals`."""
        known = ((run.name, waits_of(run._history)) for run in self._runs.values())
        return table_of_waits({name: waits for name, waits in known if waits is not None})


def replay(
    recording: EngineRecording | str | os.PathLike[str],
    formulas: FormulaLike | Sequence[FormulaLike] | None = None,
    *,
    variants: VariantsLike = (),
    as_recorded: bool = False,
    policy: str | Policy | None = None,
    clock: Literal["steps", "time"] | None = None,
    device_bytes: int | None = None,
    slo: str | None = None,
    scheduler_python: str = sys.executable,
    jobs: int | None = None,
) -> Runs:
    """Replay a recording under token-budget formulas.

    Args:
        recording: from `trace.recording()`, or the path of a trace.
        formulas: one or several: a built-in name (`fdtrace formulas` lists them), `name: EXPRESSION`,
            `FILE.py:CLASS`, or a class with `budget(self, v)`. None: the default ones of `fdtrace replay`, or none if
            there are variants.
        variants: replays with changed settings: texts as `-w` takes them (`"few: max_num_seqs=8"`), or by name a
            mapping of settings and of `formula`, `policy`, `scheduler`, `arrivals`, `acceptances`.
        as_recorded: keep the state that each recorded step had (exact, needs no model). Else the model of FastDeploy's
            scheduler schedules the recorded requests again.
        policy: the scheduler's version, by its name; None: the formula's own, or the recorded one.
        clock: whether rescheduled requests arrive by recorded step or by recorded time. None: by step; by time if
            settings change.
        device_bytes: also find the step at which a device of so many bytes would have run out of memory.
        slo: objectives of a request, as `"ttft=500ms,itl=50ms"`: `outcome.latency.goodput_per_s` counts by them.
        scheduler_python: a Python that can import the engine whose scheduler a variant asks for.
        jobs: how many processes compute the replays at most. None: one a processor if the recording is long enough,
            else none beside this one. A formula that is an object, or a class that only this process has, as in a
            notebook, stays in this process.

    Returns:
        The recording as `runs["recorded"]`, and a run for each formula and variant.

    Raises:
        UsageError: a formula or a variant is not valid, cannot be computed, or cannot reschedule this recording.
        TraceError: nothing was recorded, or (given a path) the file is no trace.
    """
    if isinstance(recording, (str, os.PathLike)):
        with open_library_trace(recording) as trace:
            recording = trace.recording()
    given_policy = parse_policy(policy) if isinstance(policy, str) else policy
    chosen = chosen_variants(recording.value, formulas, variants, scheduler_python)
    replayer = VariantReplayer(recording.value, chosen, clock, device_bytes, slo)
    rows = recording.value.details.step_rows
    memory_rows = rows if isinstance(rows, RowsInMemory) else None
    runs = [ReplayRun(replayer.recorded(), None, memory_rows)]
    if as_recorded:
        return Runs([*runs, *(ReplayRun(replayer.as_recorded(one), None, memory_rows) for one in chosen)])
    settings = (clock, device_bytes, slo, scheduler_python)
    orders = replay_orders(formulas, variants)
    with replayer:
        beside = histories_beside(replayer, chosen, orders, given_policy, jobs, *settings)
        histories = beside or [replayer.reschedule(variant, given_policy) for variant in chosen]
    for variant, history in zip(chosen, histories, strict=True):
        explain = None
        if variant.formula is not None:
            policy_of_formula = variant.policy or given_policy or policy_with(variant.formula)
            used_policy = policy_of_formula or recorded_policy(recording.value)
            explain = _explaining(replayer.experiment(variant), variant.formula, used_policy, history)
        runs.append(ReplayRun(history, explain, memory_rows))
    return Runs(runs)


def _explaining(
    experiment: Experiment, formula: Formula, policy: Policy, history: History
) -> Callable[[int], StepReasons]:
    order, recording = history.outcome.order, experiment.recording
    explainer = explainer_of(order, recording, lambda: experiment.workload, formula, policy)

    def explain(step: int) -> StepReasons:
        numbers, hang = history.columns["step"], history.outcome.hang
        has_step = bool(len(numbers)) and int(numbers[0]) <= step <= int(numbers[-1])
        if not has_step and (hang is None or step != hang.step):
            last = f"{numbers[0]} to {numbers[-1]}" if len(numbers) else "none"
            raise UsageError(f"{history.name} has no step {step}", hint=f"its steps: {last}")
        explanation = explainer.explain(step)
        last_call = explanation.decisions[-1] if explanation.decisions else None
        return StepReasons(
            step,
            int(history.columns["num_tokens"][numbers.searchsorted(step)]) if has_step else None,
            None if last_call is None else last_call.token_budget,
            explanation.num_running,
            explanation.num_waiting,
            explanation.num_free_blocks,
            None if last_call is None else last_call.not_admitted,
            tuple(reason.text for decision in explanation.decisions for reason in decision.reasons),
        )

    return explain


def _row(row: StepRow) -> dict[str, Any]:
    blocks = row.num_blocks
    return {
        "request_id": row.request_id,
        "kind": row.kind,
        "num_tokens": row.num_tokens,
        "num_computed_tokens": row.num_computed_tokens,
        "num_draft_tokens": row.num_draft_tokens,
        "num_accepted_tokens": row.num_accepted_tokens,
        "num_blocks": None if blocks is None or blocks < 0 else blocks,
    }
