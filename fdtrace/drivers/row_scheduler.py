"""A real scheduler whose driver answers with a row for each request, behind the interface of the replayer's model."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from fdtrace.drivers.driven_requests import head_of
from fdtrace.drivers.driven_scheduler import DrivenScheduler
from fdtrace.replayer.model.cache_events import Cached
from fdtrace.replayer.model.events import Arrived, Decision, Forward, StepRow
from fdtrace.replayer.model.initial_events import AdmissionBlocked


class RowDrivenScheduler(DrivenScheduler):
    """A scheduler whose decodes run the drafts that they have, or wait: each step has a row for each request in it."""

    keeps_rows = True

    def _spec(self, event: Arrived, accepts: list[int], resumed: dict[str, int] | None) -> dict[str, Any]:
        assert event.num_output_tokens is not None
        most = event.max_tokens
        drafts = event.drafts
        return {
            "id": event.request_id,
            "prompt": event.num_prompt_tokens,
            "contents": self._blocks(event),
            "max_tokens": event.num_output_tokens if most is None else max(most, event.num_output_tokens),
            "output": event.num_output_tokens,
            "accepts": accepts,
            "drafts": [] if drafts is None else [int(n) for n in drafts],
            "restarts": list(event.restarts),
            "after_idle": event.after_idle,
            "priority": event.priority,
            "resumed": resumed,
        }

    def _begin_with(self, event: Cached | AdmissionBlocked) -> None:
        if isinstance(event, Cached):
            self._arrived.append({"cached": [self._token(block) for block in event.blocks]})
        else:
            self._arrived.append({"admits_new": False})

    def _blocks(self, event: Arrived) -> list[int]:
        """The token of which each block of the whole sequence consists: equal for equal content."""
        assert event.num_output_tokens is not None
        key = event.block_key
        if key is None or not self.config.prefix_caching:
            content: Hashable = (event.request_id, "own")
            return [self._token(content)]
        num_blocks = -(-(event.num_prompt_tokens + event.num_output_tokens) // self.config.block_size)
        return [self._token(key(block)) for block in range(num_blocks)]

    def _schedule(self) -> Decision:
        answer = self._step()
        return Decision(
            call=self._calls - 1,
            token_budget=answer["budget"],
            num_running_decodes=answer["running_decodes"],
            num_scheduled_tokens=answer["scheduled"],
            chunks=[(row[0], row[3], row[3] + row[2]) for row in answer["rows"] if not row[1]],
            preempted=answer["preempted"],
            aborted=answer["aborted"],
            num_free_blocks=answer["free_blocks"],
            num_running=answer["running"],
            num_waiting=answer["waiting"],
            **head_of(answer),
        )

    def _forwarded(self) -> Forward:
        answer = self._answer
        for name, decodes, *_, emitted in answer["rows"]:
            request = self._requests[name]
            request.emitted += emitted
            request.forwards += decodes
        for name in (*answer["finished"], *answer["aborted"]):
            self._requests.pop(name, None)
        decodes = [row for row in answer["rows"] if row[1]]
        return Forward(
            num_prefill_tokens=answer["scheduled"] - sum(row[2] for row in decodes),
            num_decode_tokens=sum(row[2] for row in decodes),
            num_decodes=len(decodes),
            stalled=answer.get("stalled", []),
            started=[],
            finished=answer["finished"],
        )

    def num_output_tokens_of(self, request_id: str) -> int:
        """Output tokens that a request has generated."""
        request = self._requests[request_id]
        return min(request.emitted, request.plan.output)

    def rows(self, decision: Decision) -> list[StepRow]:
        """The requests of the forward that follows this call, in the order in which they were scheduled."""
        return [
            StepRow(name, "decode" if decodes else "prefill", num_tokens, before, drafts, accepted, blocks)
            for name, decodes, num_tokens, before, drafts, accepted, blocks, _ in self._answer["rows"]
        ]
