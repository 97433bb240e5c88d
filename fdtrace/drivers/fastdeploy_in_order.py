"""FastDeploy's real scheduler, driven by the events of a recorded deployment, behind the interface of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from fdtrace.drivers.driven_requests import FIRST_TOKEN, head_of, prompt_runs
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.model.events import (
    Aborted,
    Arrived,
    Decision,
    DecodeTokenCounts,
    Discarded,
    Freed,
    Joined,
    Left,
    Notification,
    OutputCached,
    Recycled,
    Rescheduled,
    Resumed,
    Schedule,
)
from fdtrace.replayer.model.found_events import (
    LeavingAtStart,
    Preallocated,
    PrefixCacheAtStart,
    ReserveAtStart,
    SlotLost,
)

AskDriver = Callable[[dict[str, Any]], dict[str, Any]]

NAMED = {
    Aborted: "aborted",
    Left: "left",
    Freed: "freed",
    Rescheduled: "requeued",
    Recycled: "recycled",
    Preallocated: "preallocated",
    Discarded: "discarded",
}
"""Events that only name a request -> their names in `fastdeploy_events`."""


class FastDeployInOrder:
    """The `ResourceManagerV1` of a checkout, for a replay in recorded order. `ask` sends a message to its process.

    It gives no reasons for its decisions, and does not say with which budget a call began.
    """

    explains = False

    def __init__(
        self, ask: AskDriver, config: SchedulerConfig, name: str, token: Callable[[Any], int]
    ) -> None:
        self.config, self.name, self._ask, self._token = config, name, ask, token
        self.num_requests = 0
        """Requests that the engine has after the last call."""
        self._known_tokens: dict[str, int] = {}
        self._blocks: dict[str, int] = {}
        self._prefill_tokens: dict[str, int] = {}
        self._calls = 0

    @overload
    def apply(self, event: Schedule) -> Decision: ...
    @overload
    def apply(self, event: Notification) -> None: ...
    def apply(self, event: Notification | Schedule) -> Decision | None:
        """As the model's `apply`. KeyError: the event cannot happen in the engine's current state."""
        if isinstance(event, Schedule):
            return self._schedule(event)
        if isinstance(event, DecodeTokenCounts):
            self._known_tokens.update(event.num_total_tokens)
            return None
        answer = self._send(event=self._event(event))
        if not answer["taken"]:
            raise KeyError(event)
        return None

    def _send(self, **fields: Any) -> dict[str, Any]:
        message = {"known": self._known_tokens, **fields}
        self._known_tokens = {}
        return self._ask(message)

    def _event(self, event: Notification) -> list[Any]:
        if isinstance(event, Arrived):
            return ["queued", self._spec(event)]
        if isinstance(event, Resumed):
            return ["found", self._spec(event.arrived), _state_of(event)]
        if isinstance(event, (ReserveAtStart, SlotLost, PrefixCacheAtStart, LeavingAtStart)):
            return self._found(event)
        if isinstance(event, OutputCached):
            return ["output_cached", event.request_id, event.num_total_tokens]
        if isinstance(event, Joined):
            return ["joined", event.request_id, FIRST_TOKEN]
        if isinstance(event, (Aborted, Left, Freed, Rescheduled, Recycled, Preallocated, Discarded)):
            return [NAMED[type(event)], event.request_id]
        raise TypeError(f"no recording in order has a {type(event).__name__}")

    def _found(self, event: ReserveAtStart | SlotLost | PrefixCacheAtStart | LeavingAtStart) -> list[Any]:
        """What the recording found when it began, besides requests."""
        if isinstance(event, ReserveAtStart):
            return ["reserve", event.value, event.relaxed]
        if isinstance(event, SlotLost):
            return ["slot_lost"]
        if isinstance(event, LeavingAtStart):
            spec = {"id": event.request_id, "prompt": [[FIRST_TOKEN, 1]], "contents": [], "max_tokens": 1}
            return ["leaving", spec, event.num_blocks, None if event.leaf is None else list(event.leaf)]
        blocks = [list(block._replace(key=self._token(block.key))) for block in event.blocks]
        return ["cached", blocks, event.num_free_blocks]

    def _spec(self, event: Arrived) -> dict[str, Any]:
        """A request, and the tokens of which the blocks of its output consist: equal for equal content."""
        size, most = self.config.block_size, event.max_tokens
        prompt, _ = prompt_runs(self.config, event, self._token)
        if most is None:
            most = self.config.max_model_len - event.num_prompt_tokens
        first, last = event.num_prompt_tokens // size, (event.num_prompt_tokens + most) // size
        contents = [FIRST_TOKEN]
        if self.config.prefix_caching:
            key = event.block_key or (lambda block: (event.request_id, block))
            contents = [self._token(key(block)) for block in range(first, last + 1)]
        return {"id": event.request_id, "prompt": prompt, "contents": contents, "max_tokens": most}

    def _schedule(self, event: Schedule) -> Decision:
        call = {
            "not_ready": sorted(event.not_ready or ()),
            "failed": sorted(event.failed),
            "needed": list(event.needed_blocks),
        }
        answer = self._send(call=call)
        self._blocks, self._prefill_tokens = answer["blocks"], answer["need"]
        self.num_requests = answer["requests"]
        self._calls += 1
        return decision_of(answer, self._calls - 1)

    def num_blocks_of(self, request_id: str) -> int:
        """KV blocks of a request that the last call scheduled or extended."""
        return self._blocks[request_id]

    def num_prefill_tokens_of(self, request_id: str) -> int:
        """Tokens that the prefill of a request covers. The last call must have scheduled the request."""
        return self._prefill_tokens[request_id]

    def num_held_back(self, decision: Decision) -> int:
        """Not known."""
        return 0


def _state_of(resumed: Resumed) -> dict[str, Any]:
    return {
        "place": resumed.place,
        "num_computed_tokens": int(resumed.num_computed_tokens),
        "num_blocks": int(resumed.num_blocks),
        "num_emitted_tokens": int(resumed.num_emitted_tokens),
        "num_prefill_tokens": resumed.num_prefill_tokens,
        "leaf": None if resumed.leaf is None else list(resumed.leaf),
    }


def decision_of(answer: dict[str, Any], call: int) -> Decision:
    """What a call of FastDeploy decided, from its driver's answer. The budget with which it began is not known."""
    return Decision(
        call=call,
        token_budget=MISSING,
        num_running_decodes=answer["running_decodes"],
        num_scheduled_tokens=MISSING,
        chunks=[(name, start, end) for name, start, end in answer["chunks"]],
        extended=answer["extended"],
        preempted=answer["preempted"],
        aborted=answer["aborted"],
        errors=[(error[0], error[-1]) for error in answer["errors"]],
        num_free_blocks=answer["free_blocks"],
        num_running=answer["running"],
        num_waiting=answer["waiting"],
        num_reserve_faults=answer.get("faults", 0),
        **head_of(answer),
    )
