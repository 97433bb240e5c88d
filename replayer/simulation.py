"""A workload run through the scheduler model: one forward in lockstep with each call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from fdtrace.recorder.recording import MISSING
from fdtrace.replayer.config import ORIGINAL, Policy, Role
from fdtrace.replayer.events import FORWARDED, SCHEDULE, Aborted, Decision, Forward, Recycled, Rescheduled
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.handover import Handed, Handover
from fdtrace.replayer.hang import HangWatch
from fdtrace.replayer.history import Cut, Hang, StepRow
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
    num_asking: int = 0
    """In those roles: requests without a slot after the step."""
    num_preallocated: int = 0
    """Requests that have their slots and blocks then and have not joined; below, these blocks."""
    num_preallocated_blocks: int = 0


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
        """Since which step no request comes further, and why. Where the workload itself sets `max_steps`, the steps
        go on up to there, else they end with it.
        """
        self.num_finished = self.num_aborted = self.num_failed = 0
        """Requests that made all their output, that a client aborted, and that came to nothing otherwise: refused or
        failed by the other instance, or preempted in the decode role.
        """
        self._next = 0
        self._aborts: dict[int, list[str]] = {}
        self._watch = HangWatch(self.scheduler)
        self._handover = Handover(self.scheduler, workload)

    @property
    def done(self) -> bool:
        """Whether every request has arrived and gone."""
        return self._next == len(self.workload.requests) and self.scheduler.idle

    def __iter__(self) -> Iterator[Step]:
        while self.step < self.workload.max_steps and not self.done:
            if self.hang is not None and not self.workload.runs_to_limit:
                return
            yield self.run_step()

    @property
    def cut(self) -> Cut | None:
        """Where the limit of steps ended it, after all steps; None: it came to its end, or hangs."""
        if self.done or self.hang is not None or self.step < self.workload.max_steps:
            return None
        to_come = len(self.workload.requests) - self._next
        return Cut(self.step, self.workload.max_steps, self.scheduler.num_requests, to_come)

    def _arrive(self) -> bool:
        """Hand over the requests that are due; whether there were any."""
        requests, before = self.workload.requests, self._next
        while self._next < len(requests) and requests[self._next].arrival <= self.step:
            request = requests[self._next]
            self.scheduler.apply(request.resumed or request.arrived())
            if request.abort_after is not None:
                self._aborts.setdefault(self.step + request.abort_after, []).append(request.request_id)
            self._next += 1
        return self._next > before

    def run_step(self) -> Step:
        """Run one step; SchedulerFailed where FastDeploy's scheduler would raise."""
        scheduler = self.scheduler
        outside = self._arrive()
        for request_id in self._aborts.pop(self.step, ()):
            if request_id in scheduler:
                scheduler.apply(Aborted(request_id))
                outside = True
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
        self._count(decision, forward, handed)
        self._look_for_hang(decision, forward, moved=handed.moved, outside=outside)
        step = Step(self.step, decision, forward, rows, handed, scheduler.config.role)
        if step.role != "mixed":
            step.num_asking, step.num_preallocated = scheduler.num_asking, scheduler.num_preallocated
            step.num_preallocated_blocks = scheduler.num_preallocated_blocks
        self.step += 1
        return step

    def _count(self, decision: Decision, forward: Forward, handed: Handed) -> None:
        self.num_finished += len(forward.finished)
        self.num_aborted += len(decision.aborted)
        self.num_failed += len(handed.discarded) + len(decision.errors)
        if self.scheduler.config.role == "decode":
            self.num_failed += len(decision.preempted)

    def _look_for_hang(self, decision: Decision, forward: Forward, *, moved: bool, outside: bool) -> None:
        """What comes from outside, before the limit of steps, may still bring progress: then it does not hang."""
        hopeless = self._watch.after_call(self.step, decision, forward, moved=moved, outside=outside)
        if not hopeless:
            self.hang = None
        elif self.hang is None and not self.scheduler.idle and not self._is_coming():
            self.hang = self._watch.hang(decision, forward)

    def _is_coming(self) -> bool:
        requests, limit = self.workload.requests, self.workload.max_steps
        if self._next < len(requests) and requests[self._next].arrival < limit:
            return True
        due = self._handover.next_due
        return min(self._aborts, default=limit) < limit or (due is not None and due < limit)


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
    """The golden line of a step, and what decided: null is what the scheduler does not tell, or did not look at."""
    decision = step.decision
    return {
        **golden_line(step),
        "token_budget": None if decision.token_budget == MISSING else decision.token_budget,
        "not_admitted": decision.not_admitted,
        "blocked": decision.blocked,
        "num_needed_blocks": decision.num_needed_blocks,
        "num_missing_blocks": decision.num_missing_blocks,
        "num_reserved_blocks": decision.num_reserved_blocks,
        "new_token_ratio": decision.new_token_ratio,
        "num_asking": step.num_asking,
        "num_preallocated": step.num_preallocated,
        "num_preallocated_blocks": step.num_preallocated_blocks,
    }
