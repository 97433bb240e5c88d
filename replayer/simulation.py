"""A workload run through the scheduler model: one forward in lockstep with each call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from fdtrace.replayer.config import ORIGINAL, Policy, Role
from fdtrace.replayer.events import FORWARDED, SCHEDULE, Aborted, Decision, Forward, Recycled, Rescheduled
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.handover import Handed, Handover
from fdtrace.replayer.hang import cause_of, is_stuck
from fdtrace.replayer.history import Hang, StepRow
from fdtrace.replayer.interface import AnyScheduler, scheduler_by
from fdtrace.replayer.workload import Workload


@dataclass(slots=True)
class Step:
    """One call and its forward."""

    number: int
    decision: Decision
    forward: Forward
    rows: list[StepRow] | None
    """The requests that ran: chunks in order of scheduling, then decodes in the worker's order."""
    handed: Handed
    """In the prefill and decode roles: what came before the call."""
    role: Role


class Simulation:
    """Steps of a workload under a formula and a policy, or by a scheduler of another kind; iterate over it, once.

    A step: requests whose arrival has come are added, aborts that are due handed over, the scheduler called,
    a forward run, finished requests freed, preempted ones put back, aborted ones forgotten. In the prefill and
    decode roles, blocks are asked for before the call, and requests join.
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
        """Since which step work is pending and nothing moves, and why; the steps go on up to the workload's
        limit.
        """
        self._next = 0
        self._aborts: dict[int, list[str]] = {}
        self._handover = Handover(self.scheduler, workload)

    @property
    def done(self) -> bool:
        """Whether every request has arrived and gone."""
        return self._next == len(self.workload.requests) and self.scheduler.idle

    def __iter__(self) -> Iterator[Step]:
        while self.step < self.workload.max_steps:
            self._arrive()
            if self.done:
                return
            yield self.run_step()

    def _arrive(self) -> None:
        requests = self.workload.requests
        while self._next < len(requests) and requests[self._next].arrival <= self.step:
            request = requests[self._next]
            self.scheduler.apply(request.resumed or request.arrived())
            if request.abort_after is not None:
                self._aborts.setdefault(self.step + request.abort_after, []).append(request.request_id)
            self._next += 1

    def run_step(self) -> Step:
        """Run one step; SchedulerFailed where FastDeploy's scheduler would raise."""
        scheduler = self.scheduler
        for request_id in self._aborts.pop(self.step, ()):
            if request_id in scheduler:
                scheduler.apply(Aborted(request_id))
        handed = self._handover.before_call(self.step)
        decision = scheduler.apply(SCHEDULE)
        rows = scheduler.rows(decision) if self.with_rows else None
        forward = scheduler.apply(FORWARDED)
        if scheduler.config.role != "decode":
            for request_id in decision.preempted:
                scheduler.apply(Rescheduled(request_id))
        for request_id in decision.aborted:
            scheduler.apply(Recycled(request_id))
        self._handover.after_forward(self.step, forward)
        self._watch(decision, forward, handed)
        step = Step(self.step, decision, forward, rows, handed, scheduler.config.role)
        self.step += 1
        return step

    def _watch(self, decision: Decision, forward: Forward, handed: Handed) -> None:
        """What comes from outside may still move it: then it does not hang."""
        coming = self._next < len(self.workload.requests) or self._aborts or handed.moved
        coming = coming or self._handover.next_due is not None
        if coming or not is_stuck(decision, forward) or self.scheduler.idle:
            self.hang = None
        elif self.hang is None:
            self.hang = Hang(self.step, cause_of(self.scheduler, decision, forward.stalled))


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
