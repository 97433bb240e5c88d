"""What a simulation did, step by step: its waits are computed from it, and `simulate -o` writes it as a trace."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.column_values import MISSING, Ints
from fdtrace.replayer.analysis.waiting import Waits, waits_from
from fdtrace.replayer.history.lives import RequestLives
from fdtrace.replayer.model.events import StepRow
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns
from fdtrace.replayer.replay.simulation import Step
from fdtrace.replayer.workload.workload import Workload

ROW = ("step", "request", "prefill", "num_tokens", "num_computed_tokens", "num_accepted_tokens")
"""The columns of a row that waits need; then come drafts and blocks."""


@dataclass(slots=True)
class SimulatedRequest:
    """What became of one request; step numbers are the simulation's."""

    first_computed: int | None = None
    """Tokens of its prefill that were computed before its first chunk: found in the prefix cache."""
    num_output_tokens: int = 0
    computed: int = 0
    """Tokens whose KV it has after the last step in which it ran."""
    num_blocks: int | None = None
    ended: int | None = None
    finish_reason: str = ""


@dataclass(frozen=True)
class SimulatedEvent:
    """One event of a step; `detail` as in table `event`."""

    step: int
    kind: str
    request: int
    reason: str = ""
    detail: dict[str, int] | None = None


@dataclass
class SimulatedLog:
    """The steps of one simulation. A step without tokens counts too: it is a call whose forward had nothing to run."""

    workload: Workload
    steps: list[Step] = field(default_factory=list)
    """Without their rows."""
    events: list[SimulatedEvent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.numbers = {request.request_id: i for i, request in enumerate(self.workload.requests)}
        self.requests = [SimulatedRequest() for _ in self.workload.requests]
        self._rows = array("q")

    def add(self, step: Step) -> None:
        """Keep one step."""
        handed = step.handed
        for name in handed.preallocated:
            held = step.preallocated_blocks.get(name)
            self._event(step, "preallocated", name, detail=None if held is None else {"num_blocks": held})
        for kind, names in (("joined", handed.joined), ("discarded", handed.discarded)):
            for name in names:
                self._event(step, kind, name)
        decision = step.decision
        for name in decision.preempted:
            request = self.requests[self.numbers[name]]
            blocks = {} if request.num_blocks is None else {"num_blocks": request.num_blocks}
            detail = {**blocks, "num_computed_tokens": request.computed}
            self._event(step, "preempted", name, reason="blocks", detail=detail)
        for row in step.rows or ():
            self._row(step.number, row)
        for name in step.forward.stalled:
            self._event(step, "stalled", name)
        self._ended(step, decision.aborted, "abort")
        self._ended(step, [*(name for name, _ in decision.errors), *handed.discarded], "error")
        if step.role == "decode":
            self._ended(step, decision.preempted, "error")
        self._ended(step, step.forward.finished, "stop")
        step.rows = None
        self.steps.append(step)

    def _event(self, step: Step, kind: str, name: str, **more: Any) -> None:
        self.events.append(SimulatedEvent(step.number, kind, self.numbers[name], **more))

    def _row(self, step: int, row: StepRow) -> None:
        number, prefill = self.numbers[row.request_id], row.kind == "prefill"
        blocks = MISSING if row.num_blocks is None else row.num_blocks
        self._rows.extend(
            (
                *(step, number, prefill, row.num_tokens, row.num_computed_tokens),
                *(row.num_accepted_tokens, row.num_draft_tokens, blocks),
            )
        )
        request, planned = self.requests[number], self.workload.requests[number]
        request.num_blocks = row.num_blocks
        if request.first_computed is None:
            request.first_computed = row.num_computed_tokens
        if prefill:
            request.computed = row.num_computed_tokens + row.num_tokens
            made = int(request.computed >= planned.num_prompt_tokens + request.num_output_tokens)
        else:
            request.computed = row.num_computed_tokens + row.num_accepted_tokens
            made = request.computed + 1 - planned.num_prompt_tokens - request.num_output_tokens
        request.num_output_tokens = min(planned.num_output_tokens, request.num_output_tokens + made)

    def _ended(self, step: Step, names: list[str], reason: str) -> None:
        for name in names:
            request = self.requests[self.numbers[name]]
            request.ended, request.finish_reason = step.number, reason
            self._event(step, "finished", name, reason=reason)

    @property
    def rows(self) -> NDArray[np.int64]:
        """The requests of every step: `ROW`, drafts, blocks; a row each."""
        return np.frombuffer(bytes(self._rows), dtype=np.int64).reshape(-1, len(ROW) + 2)

    def waits(self, name: str, num_steps: int) -> Waits:
        """The waits in the first `num_steps` steps, in steps of the simulation."""
        rows = self.rows
        rows = rows[rows[:, 0] < num_steps]
        step, request, prefill, tokens, computed, accepted = rows.T[: len(ROW)]
        ends = [MISSING if request.ended is None else request.ended for request in self.requests]
        ended = np.array(ends, np.int64)
        lives = RequestLives(
            list(self.numbers),
            np.array([request.arrival for request in self.workload.requests], np.int64),
            np.where(ended < num_steps, ended, MISSING),
            BatchRowColumns(step, request, prefill.astype(bool), tokens, computed, accepted),
        )
        if self.workload.config.role != "mixed":
            held_from, held_to, held_blocks = self._held(num_steps)
            lives = replace(lives, held_from=held_from, held_to=held_to, held_blocks=held_blocks)
        decisions = [step.decision for step in self.steps[:num_steps]]
        missing = [
            MISSING if decision.num_missing_blocks is None else decision.num_missing_blocks
            for decision in decisions
        ]
        reasons = np.array([decision.not_admitted or "" for decision in decisions], object)
        columns = {
            "step": np.arange(num_steps),
            "not_admitted": reasons,
            "num_missing_blocks": np.array(missing, np.int64),
            "num_waiting": np.array([decision.num_waiting for decision in decisions], np.int64),
        }
        return waits_from(name, lives, columns)

    def _held(self, num_steps: int) -> tuple[Ints, Ints, Ints]:
        """From when to when each request held blocks before it joined, and how many."""
        held_from, held_to, blocks = (np.full(len(self.numbers), MISSING) for _ in range(3))
        for event in self.events:
            if event.step >= num_steps:
                continue
            if event.kind == "preallocated":
                held_from[event.request] = event.step
                blocks[event.request] = (event.detail or {}).get("num_blocks", MISSING)
            elif event.kind in ("joined", "discarded"):
                held_to[event.request] = event.step
        return held_from, held_to, blocks
