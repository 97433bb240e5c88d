"""A small scheduler with the surface of vLLM's: what fdtrace hooks and reads, with rules of its own."""

from __future__ import annotations

from collections import deque
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.sched.output import ModelRunnerOutput, SchedulerOutput
from vllm.v1.request import Request, RequestStatus


class Queue(deque[Request]):
    def peek_request(self) -> Request:
        return self[0]


class Scheduler:
    def __init__(self, vllm_config: Any, *, asynchronous: bool = False) -> None:
        self.vllm_config = vllm_config
        self.scheduler_config, self.cache_config = vllm_config.scheduler_config, vllm_config.cache_config
        self.max_num_running_reqs = self.scheduler_config.max_num_seqs
        self.max_num_scheduled_tokens = self.scheduler_config.max_num_batched_tokens
        self.max_model_len = vllm_config.model_config.max_model_len
        self.block_size = self.cache_config.block_size
        self.num_spec_tokens = getattr(vllm_config.speculative_config, "num_speculative_tokens", 0)
        self.asynchronous = asynchronous
        self.requests: dict[str, Request] = {}
        self.waiting = Queue()
        self.running: list[Request] = []
        self.kv_cache_manager = KVCacheManager(self.cache_config.num_gpu_blocks, self.block_size)

    def add_request(self, request: Request) -> None:
        self.requests[request.request_id] = request
        self.waiting.append(request)

    def schedule(self) -> SchedulerOutput:
        out, self.left = SchedulerOutput(), self.max_num_scheduled_tokens
        self.preempting = False
        for request in list(self.running):
            if request in self.running and self.left:
                self._go_on(out, request)
        skipped: list[Request] = []
        while self.waiting and self.left and not self.preempting:
            if len(self.running) >= self.max_num_running_reqs:
                break
            if self.waiting[0].status is RequestStatus.WAITING_FOR_REMOTE_KVS:
                skipped.append(self.waiting.popleft())
            elif not self._admit(out):
                break
        self.waiting.extendleft(reversed(skipped))
        out.total_num_scheduled_tokens = sum(out.num_scheduled_tokens.values())
        for name, tokens in out.num_scheduled_tokens.items():
            self._sent(out, self.requests[name], tokens)
        return out

    def _go_on(self, out: SchedulerOutput, request: Request) -> None:
        if request.num_output_tokens + bool(request.num_output_placeholders) >= request.max_tokens:
            return
        drafts = request.spec_token_ids
        ahead = request.num_tokens + request.num_output_placeholders - request.num_computed_tokens
        tokens = min(ahead + len(drafts), self.left)
        if tokens <= 0:
            return
        while (new := self.kv_cache_manager.allocate_slots(request, tokens)) is None:
            victim = self.running.pop()
            self._preempt(victim)
            if victim is request:
                return
        self._hand_out(out, request, tokens)
        if drafts and tokens > ahead:
            out.scheduled_spec_decode_tokens[request.request_id] = drafts[: tokens - ahead]
        out.scheduled_cached_reqs.req_ids.append(request.request_id)
        out.scheduled_cached_reqs.new_block_ids.append((new,) if new else None)

    def _admit(self, out: SchedulerOutput) -> bool:
        request = self.waiting[0]
        tokens = min(request.num_tokens, self.left)
        if self.kv_cache_manager.allocate_slots(request, tokens) is None:
            return False
        self.running.append(self.waiting.popleft())
        request.status = RequestStatus.RUNNING
        self._hand_out(out, request, tokens)
        return True

    def _hand_out(self, out: SchedulerOutput, request: Request, tokens: int) -> None:
        out.num_scheduled_tokens[request.request_id] = tokens
        out.starts[request.request_id] = request.num_computed_tokens
        if not request.prefilled:
            out.prefills.add(request.request_id)
        self.left -= tokens

    def _sent(self, out: SchedulerOutput, request: Request, tokens: int) -> None:
        request.num_computed_tokens += tokens
        request.num_in_flight += tokens
        request.spec_token_ids = []
        request.prefilled = request.prefilled or request.num_computed_tokens >= request.num_tokens
        if self.asynchronous and request.prefilled:
            drafts = len(out.scheduled_spec_decode_tokens.get(request.request_id, ()))
            request.num_output_placeholders += 1 + drafts
            request.spec_token_ids = [-1] * self.num_spec_tokens

    def _preempt(self, request: Request) -> None:
        self.kv_cache_manager.free(request)
        request.status, request.prefilled = RequestStatus.PREEMPTED, False
        request.num_computed_tokens = request.num_output_placeholders = 0
        request.spec_token_ids = []
        request.num_stale_output_tokens, request.drop_stale_output = request.num_in_flight, True
        self.waiting.appendleft(request)
        self.preempting = True

    def get_grammar_bitmask(self, scheduler_output: SchedulerOutput) -> None:
        return None

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> None:
        made = dict(zip(model_runner_output.req_ids, model_runner_output.sampled_token_ids, strict=True))
        for name, tokens in scheduler_output.num_scheduled_tokens.items():
            request = self.requests.get(name)
            if request is None:
                continue
            request.num_in_flight -= tokens
            if request.num_stale_output_tokens:
                request.num_stale_output_tokens -= tokens
                continue
            self._take(scheduler_output, request, made[name])

    def _take(self, out: SchedulerOutput, request: Request, sampled: list[int]) -> None:
        drafts = len(out.scheduled_spec_decode_tokens.get(request.request_id, ()))
        if drafts and sampled:
            rejected = drafts - (len(sampled) - 1)
            request.num_computed_tokens -= rejected
            if request.num_output_placeholders:
                request.num_output_placeholders -= rejected
        del sampled[max(0, request.max_tokens - request.num_output_tokens) :]
        request.num_output_tokens += len(sampled)
        if request.num_output_placeholders:
            request.num_output_placeholders -= len(sampled)
        if sampled and not self.asynchronous:
            request.spec_token_ids = list(range(self.num_spec_tokens))
        if request.num_output_tokens >= request.max_tokens:
            self.finish(request, RequestStatus.FINISHED_LENGTH_CAPPED)

    def finish(self, request: Request, status: RequestStatus) -> None:
        request.status = status
        for queue in (self.running, self.waiting):
            if request in queue:
                queue.remove(request)
        self._free_request(request)

    def _free_request(self, request: Request) -> None:
        self.kv_cache_manager.free(request)
        del self.requests[request.request_id]

    def shutdown(self) -> None:
        pass
