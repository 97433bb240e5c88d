"""The engine's scheduler: `replayer`'s model decides; decisions become slots and physical KV blocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer import (
    Aborted,
    Arrived,
    Decision,
    Emitted,
    Finished,
    Forward,
    Recycled,
    Rescheduled,
    Schedule,
    Scheduler,
    SchedulerConfig,
    parse_policy,
)
from fdtrace.replayer.formulas import parse_formula
from fdtrace.replayer.history.history import Hang
from fdtrace.replayer.replay.hang import HangWatch
from fdtrace.sandbox.blocks import BlockList
from fdtrace.sandbox.engine_config import EngineConfig
from fdtrace.sandbox.sandbox_request import NO_SLOT, SandboxRequest, Scheduled


class SandboxScheduler:
    """FastDeploy's V1 scheduling over `SandboxRequest`s; every change goes through the model."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.running: list[SandboxRequest] = []
        """In order of admission."""
        self.waiting: deque[SandboxRequest] = deque()
        self._model = model_of(config)
        self._watch = HangWatch(self._model)
        self._blocks = BlockList(config.num_blocks)
        self._free_slots = list(range(config.max_num_seqs))
        self._requests: dict[str, SandboxRequest] = {}
        """All that are not finished, by id."""
        self._last: Decision | None = None
        self._leaving = 0
        """Preempted and aborted requests that the worker has not let go of."""

    @property
    def has_work(self) -> bool:
        """Whether anything runs, waits or is on its way back to the queue."""
        return bool(self.running or self.waiting or self._leaving)

    @property
    def num_free_blocks(self) -> int:
        """KV blocks that no request holds."""
        return self._blocks.num_free

    def check(self) -> None:
        """AssertionError where the model and what was made of its decisions disagree. For tests."""
        model = self._model
        model.check()
        assert model.num_running == len(self.running)
        assert model.num_waiting == len(self.waiting)
        assert model.num_free_blocks == self._blocks.num_free
        drafts, size = self.config.num_drafts, self.config.block_size
        stalled = [r.request_id for r in self.running if r.prefilled and not r.can_decode(drafts, size)]
        assert sorted(stalled) == sorted(model.stalled())

    def add_request(self, request: SandboxRequest) -> None:
        """A request enters the waiting queue; `UsageError` where it could grow over `max_model_len`."""
        if request.num_prompt_tokens + request.max_tokens > self.config.max_model_len:
            raise UsageError(
                f"{request.request_id} may grow to {request.num_prompt_tokens + request.max_tokens} tokens",
                why=f"max_model_len is {self.config.max_model_len}",
            )
        self._model.apply(Arrived(request.request_id, request.num_prompt_tokens, request.max_tokens))
        self._requests[request.request_id] = request
        self.waiting.append(request)

    def abort_request(self, request: SandboxRequest) -> None:
        """Its client gives it up: it goes when scheduling meets it as a decode. A finished one is let be."""
        if request.request_id in self._requests:
            self._model.apply(Aborted(request.request_id))

    def schedule(self) -> Scheduled:
        """One scheduling call: tables and slots are as decided, no request has advanced yet."""
        decision = self._last = self._model.apply(Schedule())
        preempted = [self._preempt(request_id, decision) for request_id in decision.preempted]
        aborted = [self._leave(request_id) for request_id in decision.aborted]
        for request_id in decision.skipped:
            self.waiting.remove(self._requests[request_id])
            self.waiting.append(self._requests[request_id])
        for request_id, _, _ in decision.chunks:
            self._admit(self._requests[request_id])
        for request_id in [*decision.extended, *(chunk[0] for chunk in decision.chunks)]:
            self._grow(self._requests[request_id])
        self._leaving += len(preempted) + len(aborted)
        return self._scheduled(decision, preempted, aborted)

    def is_hopeless(self, step: int, forward: Forward, *, outside: bool) -> bool:
        """Whether no call after the last one and its forward brings any request further: `HangWatch`."""
        assert self._last is not None
        return self._watch.after_call(step, self._last, forward, moved=False, outside=outside)

    def hang(self, forward: Forward) -> Hang:
        """The hang that `is_hopeless` has found."""
        assert self._last is not None
        return self._watch.hang(self._last, replace(forward, stalled=self._model.stalled()))

    def take_tokens(self, emitted: Mapping[str, int]) -> None:
        """A forward emitted so many tokens for each of these requests."""
        self._model.apply(Emitted(emitted))

    def finish_request(self, request: SandboxRequest, reason: str) -> None:
        """A request made its last token (`reason`: `length` or `stop`): slot and blocks are free."""
        self._model.apply(Finished(request.request_id))
        self._leave(request.request_id)
        del self._requests[request.request_id]

    def reschedule_request(self, request: SandboxRequest) -> None:
        """The worker let go of a preempted request: it waits in front, to be prefilled output and all."""
        self._model.apply(Rescheduled(request.request_id))
        self._leaving -= 1
        request.num_prefill_tokens = request.num_total_tokens
        self.waiting.appendleft(request)

    def recycle_request(self, request: SandboxRequest) -> None:
        """The worker let go of an aborted request: it is forgotten."""
        self._model.apply(Recycled(request.request_id))
        self._leaving -= 1
        del self._requests[request.request_id]

    def _admit(self, request: SandboxRequest) -> None:
        if request.slot == NO_SLOT:
            self.waiting.remove(request)
            self.running.append(request)
            request.slot = self._free_slots.pop(0)

    def _grow(self, request: SandboxRequest) -> None:
        """Physical blocks for those that the model counts: 0 where it was preempted after its extension."""
        wanted = self._model.num_blocks_of(request.request_id) - len(request.block_table)
        request.block_table += self._blocks.take(max(0, wanted))

    def _preempt(self, request_id: str, decision: Decision) -> tuple[SandboxRequest, str, int, int]:
        request = self._requests[request_id]
        num_blocks, num_computed = len(request.block_table), request.num_computed_tokens
        why = next(
            (r.text for r in decision.reasons if r.kind == "preempted" and r.request_id == request_id), ""
        )
        self._leave(request_id)
        request.num_computed_tokens = 0
        return request, why, num_blocks, num_computed

    def _leave(self, request_id: str) -> SandboxRequest:
        """A running request gives up its slot and its blocks."""
        request = self._requests[request_id]
        self.running.remove(request)
        self._free_slots.append(request.slot)
        self._free_slots.sort()
        self._blocks.give_back(request.block_table)
        request.slot = NO_SLOT
        request.block_table = []
        return request

    def _scheduled(
        self,
        decision: Decision,
        preempted: list[tuple[SandboxRequest, str, int, int]],
        aborted: list[SandboxRequest],
    ) -> Scheduled:
        return Scheduled(
            call=decision.call,
            token_budget=decision.token_budget,
            num_scheduled_tokens=decision.num_scheduled_tokens,
            num_running_decodes=decision.num_running_decodes,
            prefills=[(self._requests[request_id], start, end) for request_id, start, end in decision.chunks],
            extended=[self._requests[request_id] for request_id in decision.extended],
            preempted=preempted,
            aborted=aborted,
            num_running=len(self.running),
            num_waiting=len(self.waiting),
            num_free_blocks=self._blocks.num_free,
            num_blocks=self.config.num_blocks,
            not_admitted=decision.not_admitted,
            num_missing_blocks=decision.num_missing_blocks,
        )


def model_of(config: EngineConfig) -> Scheduler:
    """`replayer`'s model of this configuration; raises `UsageError` where formula or policy make no sense."""
    sizes = SchedulerConfig(
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_num_seqs=config.max_num_seqs,
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        max_model_len=config.max_model_len,
        num_speculative_tokens=config.num_speculative_tokens,
        spec_method=config.spec_method,
        chunked_prefill=config.chunked_prefill,
        prefix_caching=config.prefix_caching,
    ).with_env(config.env)
    sizes = replace(sizes, chunked_prefill=config.chunked_prefill)
    return Scheduler(sizes, parse_formula(config.formula), parse_policy(config.policy))
