"""The engine's own counts, made from what its forwards ran: what a recording of it has to equal."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

from fdtrace.sandbox.request import Scheduled
from fdtrace.sandbox.runner import ModelRunner, RanRow


@dataclass(frozen=True)
class StepCounts:
    """One step. Tokens, requests and KV blocks; `rows` are [request, kind, tokens, computed before, drafts,
    accepted, blocks]. Preemptions are those of every scheduling call since the step before."""

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
    num_stalled: int
    num_free_blocks: int
    rows: list[list[Any]]


@dataclass
class Counts:
    """Sums over all steps; `hang` says since when, and why, nothing moves."""

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
    log: TextIO | None = field(default=None, repr=False)
    limit: int = 0
    _preempted_since: int = field(default=0, repr=False)

    def scheduled(self, scheduled: Scheduled) -> None:
        """Count a scheduling call, one that leads to no step included."""
        self.preemptions += len(scheduled.preempted)
        self._preempted_since += len(scheduled.preempted)

    def stepped(self, scheduled: Scheduled, runner: ModelRunner) -> StepCounts:
        """Count a forward that ran tokens, and write its line to the log."""
        step = self._step(scheduled, runner)
        self._preempted_since = 0
        self.steps += 1
        self.tokens += step.num_tokens
        self.prefill_tokens += step.num_prefill_tokens
        self.decode_tokens += step.num_decode_tokens
        self.draft_tokens += step.num_draft_tokens
        self.accepted_tokens += step.num_accepted_tokens
        self.exceeded_steps += step.exceeded
        self.peak_tokens = max(self.peak_tokens, step.num_tokens)
        self.stalls += step.num_stalled
        if self.log:
            self.log.write(json.dumps(asdict(step), separators=(",", ":")) + "\n")
        return step

    def _step(self, scheduled: Scheduled, runner: ModelRunner) -> StepCounts:
        by_kind = {
            kind: sum(r.num_tokens for r in runner.ran if r.kind == kind) for kind in ("prefill", "decode")
        }
        num_tokens = sum(by_kind.values())
        return StepCounts(
            step=runner.step,
            call=scheduled.call,
            num_tokens=num_tokens,
            num_prefill_tokens=by_kind["prefill"],
            num_decode_tokens=by_kind["decode"],
            num_draft_tokens=sum(r.num_draft_tokens for r in runner.ran),
            num_accepted_tokens=sum(r.num_accepted_tokens for r in runner.ran),
            exceeded=num_tokens > self.limit,
            num_running=scheduled.num_running,
            num_waiting=scheduled.num_waiting,
            num_preempted=self._preempted_since,
            num_stalled=len(runner.stalled),
            num_free_blocks=scheduled.num_free_blocks,
            rows=[_row(ran) for ran in runner.ran],
        )

    def summary(self) -> str:
        """The sums as one line of JSON."""
        hidden = ("log", "limit", "_preempted_since")
        return json.dumps({name: value for name, value in self.__dict__.items() if name not in hidden})


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
