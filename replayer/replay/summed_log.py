"""A log of steps that also knows the features of each batch and who made tokens when, without a row a request.

A decode runs in every step from the begin of its span to its end, and its acceptances are known beforehand. So all KV
tokens that it will read are added once, when the span begins; those of steps that it does not reach are taken back
when the span ends earlier. The cost of a step then depends on what changes in it, not on how many requests run.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fdtrace.replayer.model.events import Decision, Forward
from fdtrace.replayer.model.scheduler import Scheduler
from fdtrace.replayer.model.scheduler_queries import plan_of
from fdtrace.replayer.replay.step_log import OPEN, SPAN, StepLog
from fdtrace.replayer.workload.workload import Workload

FIRST_STEPS = 4096
"""Steps that there is room for at first; it doubles."""


@dataclass(frozen=True, eq=False)
class TokenRuns:
    """Runs of steps in each of which a request made tokens: arrays of one entry a run, by request and then by step."""

    request: NDArray[np.int64]
    """The entry of the request in the workload."""
    first: NDArray[np.int64]
    """The entry of its first step."""
    end: NDArray[np.int64]
    """The entry of the step after its last."""
    num_tokens: NDArray[np.int64]
    """Tokens that the request made in all these steps."""


class SummedLog(StepLog):
    """A `StepLog` of the model in the mixed role, with the sums of each batch."""

    def __init__(self, scheduler: Scheduler, workload: Workload) -> None:
        super().__init__(scheduler, workload)
        self._plan_of = partial(plan_of, scheduler)
        self._kv_tokens = np.zeros(FIRST_STEPS, np.int64)
        """By step: tokens computed before of the requests that decode there, as far as it is known by now."""
        self._expected: dict[str, tuple[int, NDArray[np.int64], int]] = {}
        """Open spans: the first step, the tokens computed before each of its steps, and all tokens after the last."""
        self._span_tokens = array("q")
        """Of each span that has ended: the tokens that were made in it."""
        self._prefilled = array("q")
        """Request and step of each token that a prefill made."""

    def _begin(self, request_id: str, step: int) -> tuple[int, int, int]:
        number, emitted, forwards = super()._begin(request_id, step)
        plan = self._plan_of(request_id)
        count = max(1, plan.reaching(plan.output - emitted) - forwards)
        prompt = self.workload.requests[number].num_prompt_tokens
        totals = plan.after_each(forwards, count)
        totals += prompt + emitted
        if count == 1:  # it may have made its whole output already
            np.minimum(totals, prompt + plan.output, out=totals)
        while step + count > len(self._kv_tokens):
            self._kv_tokens = np.concatenate([self._kv_tokens, np.zeros_like(self._kv_tokens)])
        self._kv_tokens[step : step + count] += totals
        self._expected[request_id] = step, totals, prompt + plan.output
        self._span_tokens.append(0)
        return number, emitted, forwards

    def _end(self, request_id: str, step: int) -> None:
        at = self._open.get(request_id)
        super()._end(request_id, step)
        if at is None:
            return
        first, totals, most = self._expected.pop(request_id)
        self._span_tokens[at // SPAN] = self._made(totals, most, step - first)
        if step < first + len(totals):
            self._kv_tokens[step : first + len(totals)] -= totals[step - first :]

    @staticmethod
    def _made(totals: NDArray[np.int64], most: int, steps: int) -> int:
        """Tokens made in the first steps of a span."""
        return (int(totals[steps]) if steps < len(totals) else most) - int(totals[0])

    def record(self, decision: Decision, forward: Forward, num_refused: int) -> bool:
        """As of `StepLog`."""
        for request_id in forward.started:
            self._prefilled.extend((self._numbers[request_id], self.num_steps))
        for request_id in forward.finished:
            if request_id not in self._open:  # the last token came from its prefill
                self._prefilled.extend((self._numbers[request_id], self.num_steps))
        return super().record(decision, forward, num_refused)

    def batch_features(self, decision: Decision, forward: Forward) -> tuple[float, ...]:
        """`batch_rows.BATCH_FEATURES` of the step that was recorded last, with its call and forward."""
        kv, attention = float(self._kv_tokens[self.num_steps - 1]), 0.0
        for _, start, end in decision.chunks:
            kv += start
            attention += (end - start) * (start + (end - start) / 2)
        return forward.num_prefill_tokens, len(decision.chunks), forward.num_decode_tokens, kv, attention

    def token_runs(self) -> TokenRuns:
        """Who made tokens in which steps."""
        for request_id, (first, totals, most) in self._expected.items():
            steps = self.num_steps - first
            self._span_tokens[self._open[request_id] // SPAN] = self._made(totals, most, steps)
        number, first_step, end, _, _ = np.array(self._spans, np.int64).reshape(-1, SPAN).T
        end = np.minimum(np.where(end == OPEN, self.num_steps, end), self.num_steps)
        of, at = np.array(self._prefilled, np.int64).reshape(-1, 2).T
        decodes = np.stack([number, first_step, end, np.array(self._span_tokens, np.int64)])
        table = np.concatenate([decodes, np.stack([of, at, at + 1, np.ones_like(at)])], axis=1)
        table = table[:, table[2] > table[1]]
        return TokenRuns(*table[:, np.lexsort((table[1], table[0]))])
