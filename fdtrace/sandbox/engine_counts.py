"""The engine's own counts, made from what its forwards ran: what a recording of it has to equal."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from fdtrace.sandbox.runner import ModelRunner, RanRow
from fdtrace.sandbox.sandbox_request import Scheduled


@dataclass(frozen=True)
class StepCounts:
    """One step; tokens, requests and KV blocks."""

    step: int
    call: int
    num_tokens: int
    num_prefill_tokens: int
    num_decode_tokens: int
    num_draft_tokens: int
    num_accepted_tokens: int
    exceeded: bool
    num_running: int
    num_waiting: int
    num_preempted: int
    """By every scheduling call since the step before."""
    num_stalled: int
    num_free_blocks: int
    rows: list[list[Any]]
    """[request, kind, tokens, computed before, drafts, accepted, blocks] of each that ran."""


@dataclass
class Counts:
    """Sums over all steps so far."""

    steps: int = 0
    tokens: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    exceeded_steps: int = 0
    peak_tokens: int = 0
    preemptions: int = 0
    stalls: int = 0
    arrived: int = 0
    finished: int = 0
    aborted: int = 0
    hang: dict[str, Any] | None = None
    """Since which step nothing moves, and in which state; None: it does not hang."""

    def add(self, step: StepCounts) -> None:
        """Add one step's; preemptions are added call by call."""
        self.steps += 1
        self.tokens += step.num_tokens
        self.prefill_tokens += step.num_prefill_tokens
        self.decode_tokens += step.num_decode_tokens
        self.draft_tokens += step.num_draft_tokens
        self.accepted_tokens += step.num_accepted_tokens
        self.exceeded_steps += step.exceeded
        self.peak_tokens = max(self.peak_tokens, step.num_tokens)
        self.stalls += step.num_stalled

    def json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


class StepCounter:
    """Counts steps as they are run, and logs each where a log is given."""

    def __init__(self, limit: int, log: TextIO | None = None) -> None:
        self.counts = Counts()
        self._limit = limit
        self._log = log
        self._num_preempted = 0

    def scheduled(self, scheduled: Scheduled) -> None:
        """Count a scheduling call, one that leads to no step included."""
        self.counts.preemptions += len(scheduled.preempted)
        self._num_preempted += len(scheduled.preempted)

    def stepped(self, scheduled: Scheduled, runner: ModelRunner) -> None:
        """Count a forward that ran tokens, and log its line."""
        step = self._step(scheduled, runner)
        self._num_preempted = 0
        self.counts.add(step)
        if self._log:
            self._log.write(json.dumps(asdict(step), separators=(",", ":")) + "\n")

    def _step(self, scheduled: Scheduled, runner: ModelRunner) -> StepCounts:
        rows = runner.ran
        num_prefill = sum(row.num_tokens for row in rows if row.kind == "prefill")
        num_decode = sum(row.num_tokens for row in rows if row.kind == "decode")
        return StepCounts(
            step=runner.step,
            call=scheduled.call,
            num_tokens=num_prefill + num_decode,
            num_prefill_tokens=num_prefill,
            num_decode_tokens=num_decode,
            num_draft_tokens=sum(row.num_draft_tokens for row in rows),
            num_accepted_tokens=sum(row.num_accepted_tokens for row in rows),
            exceeded=num_prefill + num_decode > self._limit,
            num_running=scheduled.num_running,
            num_waiting=scheduled.num_waiting,
            num_preempted=self._num_preempted,
            num_stalled=len(runner.stalled),
            num_free_blocks=scheduled.num_free_blocks,
            rows=[_row(row) for row in rows],
        )


def _row(ran: RanRow) -> list[Any]:
    return [
        ran.request.request_id,
        ran.kind,
        ran.num_tokens,
        ran.num_computed_tokens,
        ran.num_draft_tokens,
        ran.num_accepted_tokens,
        ran.num_blocks,
    ]
