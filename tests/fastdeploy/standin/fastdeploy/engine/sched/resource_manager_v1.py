"""A scheduler with the surface of FastDeploy's: budget, chunks, blocks, preemption of the last, aborts, skips."""

from __future__ import annotations

import threading
from collections import deque
from types import SimpleNamespace
from typing import Any

from fastdeploy.engine.request import BatchRequest, Request, RequestStatus, RequestType, Task


class ResourceManagerV1:
    def __init__(self, max_num_seqs: int, config: Any) -> None:
        self.config, self.max_num_seqs = config, max_num_seqs
        self.lock = threading.Lock()
        self.running: list[Request] = []
        self.waiting: deque[Request] = deque()
        self.requests: dict[str, Request] = {}
        blocks = config.cache_config.total_block_num
        self.cache_manager = SimpleNamespace(gpu_free_block_list=list(range(blocks)), num_gpu_blocks=blocks)
        self.to_be_rescheduled_request_id_set: set[str] = set()
        self.to_be_aborted_req_id_set: set[str] = set()
        self.waiting_abort_req_id_set: set[str] = set()
        self.current_reserve_output_block_num = 2
        self.slots = list(range(max_num_seqs))
        self.role = config.scheduler_config.splitwise_role

    def add_request(self, request: Request) -> None:
        with self.lock:
            self.waiting.append(request)
            self.requests[request.request_id] = request

    def _preallocate(self, request: Request) -> bool:
        if not self.slots or not self._blocks(request, request.need_prefill_tokens + 8):
            return False
        request.idx = self.slots.pop(0)
        self.requests[request.request_id] = request
        return True

    def preallocate_resource_in_p(self, request: Request) -> bool:
        with self.lock:
            return self._preallocate(request)

    def preallocate_resource_in_d(self, request: Request) -> bool:
        with self.lock:
            given = not self.waiting and self._preallocate(request)
            request.num_computed_tokens = request.need_prefill_tokens if given else 0
            return given

    def add_request_in_p(self, requests: list[Request]) -> None:
        with self.lock:
            self.running.extend(requests)

    def add_prefilled_request(self, request_output: Any) -> None:
        with self.lock:
            request = self.requests.get(request_output.request_id)
            if request is not None:
                request.output_token_ids.append(request_output.outputs.token_ids[0])
                request.need_prefill_tokens += 1
                self.running.append(request)

    def pre_recycle_resource(self, request_id: str) -> None:
        with self.lock:
            request = self.requests.pop(request_id, None)
            if request is not None:
                self._free_blocks(request)
                self.slots.append(request.idx)

    def add_abort_req_ids(self, req_ids: list[str]) -> None:
        with self.lock:
            self.waiting_abort_req_id_set.update(req_ids)

    def _blocks(self, request: Request, tokens: int) -> bool:
        size, free = self.config.cache_config.block_size, self.cache_manager.gpu_free_block_list
        wanted = -(-tokens // size) - len(request.block_tables)
        if wanted > len(free):
            return False
        request.block_tables.extend(free.pop() for _ in range(max(wanted, 0)))
        return True

    def _free_blocks(self, request: Request) -> None:
        self.cache_manager.gpu_free_block_list.extend(request.block_tables)
        request.block_tables = []

    def _log_console_scheduler_metrics(self, scheduled_reqs: Any) -> None:
        pass

    def update_metrics(self) -> None:
        pass

    def schedule(self) -> Any:
        with self.lock:
            batch_request = BatchRequest() if self.config.batch_request else None
            scheduled_reqs: Any = [] if batch_request is None else batch_request
            preempted_reqs: list[Request] = []
            error_reqs: list[tuple[str, str]] = []
            drafts = self.config.speculative_config.num_speculative_tokens
            tokens_per_seq = drafts + 1 if self.config.speculative_config.method else 1
            num_running_decode_reqs = sum(
                r.num_computed_tokens >= r.need_prefill_tokens for r in self.running
            )
            token_budget = (
                self.config.scheduler_config.max_num_batched_tokens - num_running_decode_reqs * tokens_per_seq
            )
            for request in list(self.running):
                if request in preempted_reqs:
                    continue
                if request.num_computed_tokens < request.need_prefill_tokens:
                    token_budget -= self._prefill(request, token_budget, scheduled_reqs)
                    continue
                if self.role == "prefill":
                    continue
                if request.num_total_tokens > request.need_prefill_tokens:
                    request.num_computed_tokens = request.num_total_tokens - 1
                if request.request_id in self.waiting_abort_req_id_set:
                    self._abort(request, scheduled_reqs)
                    continue
                held = len(request.block_tables)
                while not self._blocks(request, request.num_total_tokens + 2 * drafts + 2):
                    last = self.running[-1]
                    self._preempt(last, scheduled_reqs)
                    preempted_reqs.append(last)
                    if last is request:
                        break
                if len(request.block_tables) > held and request in self.running:
                    task = Task(request.idx, request.request_id, RequestType.DECODE, request.block_tables)
                    scheduled_reqs.append(task)
            skip_requests: list[Request] = []
            while self.waiting and token_budget > 0 and not preempted_reqs and self.slots:
                request = self.waiting[0]
                if request.async_process_futures:
                    request.async_process_futures.pop()
                    skip_requests.append(self.waiting.popleft())
                    continue
                request.need_prefill_tokens = request.num_total_tokens
                can_schedule_block_num_threshold = -(
                    -request.need_prefill_tokens // self.config.cache_config.block_size
                )
                if can_schedule_block_num_threshold > len(self.cache_manager.gpu_free_block_list):
                    break
                self.waiting.popleft()
                request.idx, request.status = self.slots.pop(0), RequestStatus.RUNNING
                self.running.append(request)
                token_budget -= self._prefill(request, token_budget, scheduled_reqs)
            self.waiting.extend(skip_requests)
            self._log_console_scheduler_metrics(scheduled_reqs)
            self.update_metrics()
            return (scheduled_reqs, error_reqs) if batch_request is None else scheduled_reqs

    def _prefill(self, request: Request, budget: int, tasks: Any) -> int:
        n: int = min(budget, request.need_prefill_tokens - request.num_computed_tokens)
        if n <= 0 or not self._blocks(request, request.num_computed_tokens + n):
            return 0
        request.prefill_start_index = request.num_computed_tokens
        request.prefill_end_index = request.num_computed_tokens + n
        request.num_computed_tokens += n
        tasks.append(request)
        return n

    def _leave(self, request: Request) -> None:
        self.running.remove(request)
        request.num_computed_tokens = 0
        self._free_blocks(request)

    def _preempt(self, request: Request, tasks: Any) -> None:
        self._leave(request)
        request.status = RequestStatus.PREEMPTED
        if self.role == "decode":
            self.slots.append(self.requests.pop(request.request_id).idx)
        else:
            self.to_be_rescheduled_request_id_set.add(request.request_id)
        tasks.append(Task(request.idx, request.request_id, RequestType.PREEMPTED))

    def _abort(self, request: Request, tasks: Any) -> None:
        self._leave(request)
        self.waiting_abort_req_id_set.discard(request.request_id)
        self.to_be_aborted_req_id_set.add(request.request_id)
        tasks.append(Task(request.idx, request.request_id, RequestType.ABORT))

    def reschedule_preempt_task(self, request_id: str) -> None:
        with self.lock:
            self.to_be_rescheduled_request_id_set.discard(request_id)
            request = self.requests[request_id]
            self.slots.append(request.idx)
            self.waiting.appendleft(request)

    def recycle_abort_task(self, request_id: str) -> None:
        with self.lock:
            self.to_be_aborted_req_id_set.discard(request_id)
            self.slots.append(self.requests.pop(request_id).idx)

    def finish_requests(self, request_ids: str) -> None:
        with self.lock:
            request = self.requests.pop(request_ids)
            self._leave(request)
            self.slots.append(request.idx)
        self.update_metrics()
