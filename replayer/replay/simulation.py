"""Runs a workload through the scheduler model: one forward in lockstep with each call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.replayer.config import ORIGINAL, Policy, Role
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.history.history import Hang, StepLimitReached
from fdtrace.replayer.model.events import (
    Decision,
    Forward,
    StepRow,
)
from fdtrace.replayer.model.scheduler import Scheduler
from fdtrace.replayer.replay.any_scheduler import AnyScheduler, scheduler_by
from fdtrace.replayer.replay.other_instance import HandoverChanges
from fdtrace.replayer.replay.stepper import Stepper
from fdtrace.replayer.workload.workload import Workload


@dataclass(slots=True)
class Step:
    """One call and its forward."""

    number: int
    decision: Decision
    forward: Forward
    rows: list[StepRow] | None
    """The requests that ran: chunks in order of scheduling, then decodes in the worker's order."""
    handed: HandoverChanges
    """In the prefill and decode roles: what happened before the call."""
    role: Role
    num_reserved_blocks: int | None = None
    """Free blocks kept for the running requests after the call. `new_token_ratio`: the ratio that they are reserved by.
    """
    new_token_ratio: float | None = None
    head: str | None = None
    """The request at the head of the waiting queue after the call; None: nothing waits, or it is not known."""
    preallocated_blocks: Mapping[str, int] = field(default_factory=dict)
    """In the prefill and decode roles: the KV blocks of each request that got its blocks before the call; empty: not
    known.
    """
    num_asking: int = 0
    """In those roles: requests without a slot after the step."""
    num_preallocated: int = 0
    """Requests that have slots and blocks then but have not joined. `num_preallocated_blocks`: these blocks."""
    num_preallocated_blocks: int = 0


class Simulation:
    """Steps of a workload under a formula and a policy, or by another scheduler. Iterate over it once.

    In a step, requests that are due arrive, aborts that are due are handed over, the scheduler is called, a forward
    runs, finished requests are freed, preempted ones are put back, aborted ones are removed. In the prefill and decode
    roles, blocks are asked for before the call, and requests join.
    """

    def __init__(
        self,
        workload: Workload,
        by: Formula | AnyScheduler,
        policy: Policy = ORIGINAL,
        *,
        explain: bool = False,
        with_rows: bool = True,
    ) -> None:
        self.workload, self.with_rows = workload, with_rows
        self.scheduler = scheduler_by(workload.config, by, policy, explain=explain)
        self.step = 0
        self.hang: Hang | None = None
        """Since which step no request comes further, and why. If the workload itself sets `max_steps`, the steps go on
        up to it; else they end with the hang.
        """
        self.num_finished = self.num_aborted = self.num_failed = 0
        """Requests that made all their output; that a client aborted; that failed otherwise: the other instance refused
        them or failed, or they were preempted in the decode role.
        """
        self._stepper = Stepper(workload, self.scheduler)

    @property
    def done(self) -> bool:
        """Whether every request has arrived and gone."""
        return not self._stepper.num_to_come and self.scheduler.idle

    def __iter__(self) -> Iterator[Step]:
        while self.step < self.workload.max_steps and not self.done:
            if self.hang is not None and not self.workload.runs_to_limit:
                return
            yield self.run_step()

    @property
    def cut(self) -> StepLimitReached | None:
        """After all steps: where the limit of steps ended it; None: it came to its end, or hangs."""
        if self.done or self.hang is not None or self.step < self.workload.max_steps:
            return None
        to_come = self._stepper.num_to_come
        return StepLimitReached(self.step, self.workload.max_steps, self.scheduler.num_requests, to_come)

    def run_step(self) -> Step:
        """Run one step; SchedulerFailed if FastDeploy's scheduler would raise."""
        scheduler, stepper = self.scheduler, self._stepper
        stepper.arrive(self.step)
        decision = stepper.decide(self.step)
        head, held = None, dict[str, int]()
        if isinstance(scheduler, Scheduler):
            head = scheduler.head_of_queue
            got = (name for name in stepper.handed.preallocated if name in scheduler)
            held = {name: scheduler.num_blocks_of(name) for name in got}
        rows = scheduler.rows(decision) if self.with_rows else None
        reserved = (
            (scheduler.num_reserved_blocks, scheduler.new_token_ratio) if self.with_rows else (None, None)
        )
        forward = stepper.run(self.step, self.step, decision)
        self._count(decision, forward, stepper.handed)
        self._look_for_hang(decision, forward)
        step = Step(self.step, decision, forward, rows, stepper.handed, scheduler.config.role, *reserved)
        step.head = None if head is None else head[0]
        if step.role != "mixed":
            step.num_asking, step.num_preallocated = scheduler.num_asking, scheduler.num_preallocated
            step.num_preallocated_blocks = scheduler.num_preallocated_blocks
            step.preallocated_blocks = held
        self.step += 1
        return step

    def _count(self, decision: Decision, forward: Forward, handed: HandoverChanges) -> None:
        self.num_finished += len(forward.finished)
        self.num_aborted += len(decision.aborted)
        self.num_failed += len(handed.discarded) + len(decision.errors)
        if self.scheduler.config.role == "decode":
            self.num_failed += len(decision.preempted)

    def _look_for_hang(self, decision: Decision, forward: Forward) -> None:
        """Set or clear `hang`. If something still comes from outside before the limit of steps, it does not hang."""
        if not self._stepper.hopeless:
            self.hang = None
        elif self.hang is None and not self.scheduler.idle:
            next_event = self._stepper.next_event
            if next_event is None or next_event >= self.workload.max_steps:
                self.hang = self._stepper.watch.hang(decision, forward)


def golden_line(step: Step) -> dict[str, Any]:
    """A step as one line of decisions, ready for JSON; the simulation must have been run with rows."""
    line = _line(step)
    if step.role != "mixed":
        line.update(asdict(step.handed))
    return line


def _line(step: Step) -> dict[str, Any]:
    decision, forward = step.decision, step.forward
    assert step.rows is not None
    return {
        "step": step.number,
        "tokens": forward.num_tokens,
        "rows": [[row.request_id, row.kind, row.num_tokens, row.num_computed_tokens] for row in step.rows],
        "preempted": decision.preempted,
        "extended": decision.extended,
        "stalled": forward.stalled,
        "aborted": decision.aborted,
        "finished": forward.finished,
        "errors": [list(error) for error in decision.errors],
        "running": decision.num_running,
        "waiting": decision.num_waiting,
        "free_blocks": decision.num_free_blocks,
    }


def decision_line(step: Step) -> dict[str, Any]:
    """The golden line of a step, and what the decisions depended on; null: the scheduler does not report it, or did not
    look at it.
    """
    decision, lack = step.decision, step.decision.lack
    return {
        **golden_line(step),
        "token_budget": None if decision.token_budget == MISSING else decision.token_budget,
        "not_admitted": decision.not_admitted,
        "blocked": lack and lack.request_id,
        "num_needed_blocks": lack and lack.num_needed_blocks,
        "num_missing_blocks": decision.num_missing_blocks,
        "num_reserved_blocks": lack.num_reserved_blocks if lack else step.num_reserved_blocks,
        "new_token_ratio": step.new_token_ratio,
        "num_asking": step.num_asking,
        "num_preallocated": step.num_preallocated,
        "num_preallocated_blocks": step.num_preallocated_blocks,
    }
