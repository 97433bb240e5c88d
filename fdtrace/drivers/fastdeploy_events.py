"""Applies the events of a recording, one after another, to a driven FastDeploy scheduler by its own methods.

`fastdeploy_driver.py`, which runs as a script, imports it from its own directory. Nothing is played here. The recording
says when requests arrived, how many of their tokens the engine knew, and when they ended, waited again or were removed.
FastDeploy's code decides what follows. If it has no method for an event, its state is set as the engine does it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdtrace.drivers.driver_protocol import Message
    from fdtrace.drivers.fastdeploy_driver_roles import RoleRequests
    from fdtrace.drivers.fastdeploy_finishing import (
        BETWEEN,
        FailedPreprocessing,
        Finishing,
        PendingPreprocessing,
        stopping,
    )
    from fdtrace.drivers.fastdeploy_found_cache import PrefixCacheBuilder
else:  # beside this script, without fdtrace
    from fastdeploy_driver_roles import RoleRequests
    from fastdeploy_finishing import BETWEEN, FailedPreprocessing, Finishing, PendingPreprocessing, stopping
    from fastdeploy_found_cache import PrefixCacheBuilder


class ImpossibleEvent(Exception):
    """The named request is in a state in which this event cannot happen: the replay differed before."""


THRESHOLD = "_get_can_schedule_prefill_threshold_block"


class RecordedEvents:
    """Applies events and calls to one `ResourceManagerV1`. `new_request` builds a request from its description."""

    def __init__(self, manager: Any, new_request: Callable[[Message], Any], statuses: Any) -> None:
        self.manager, self.new_request, self.statuses = manager, new_request, statuses
        self.block_size = manager.config.cache_config.block_size
        self.contents: dict[str, tuple[int, list[int]]] = {}
        """Request -> the block in which its output begins, and the token of which each block from there consists."""
        self.found_cache = PrefixCacheBuilder(manager.cache_manager)
        self.role = manager.config.scheduler_config.splitwise_role
        drafts = manager.config.speculative_config.num_speculative_tokens
        self.roles = RoleRequests(self.role, manager, drafts)
        self.asking: dict[str, Any] = {}
        """In the prefill and decode roles: requests without slots."""
        self.is_certain = False
        """Whether blocks are allocated as recorded, so that the threshold is not compared."""
        self.finishing: dict[str, Finishing] = {}
        self.leaving: dict[str, Any] = {}
        """Requests that had left when the recording began, and hold their blocks."""
        self.needed: list[int] = []
        self.num_faults = 0
        self._stop_between_sections()
        self._take_recorded_thresholds()

    def _stop_between_sections(self) -> None:
        cache = self.manager.cache_manager
        for name in BETWEEN:
            if hasattr(cache, name):
                setattr(cache, name, stopping(getattr(cache, name)))

    def _take_recorded_thresholds(self) -> None:
        """Release 2.6 reads outputs that change while a call runs, so the threshold of the recorded call is taken. If
        such outputs cannot explain it, that is counted as a fault.
        """
        manager, own_threshold = self.manager, getattr(self.manager, THRESHOLD)

        def threshold(num_new_blocks: int) -> int:
            if self.is_certain:
                return num_new_blocks
            needed = int(own_threshold(num_new_blocks))
            if not self.needed:
                return needed
            recorded = self.needed.pop(0)
            if not needed - len(manager.running) <= recorded <= needed:
                self.num_faults += 1
            return recorded if recorded >= min(num_new_blocks, needed) else needed

        setattr(manager, THRESHOLD, threshold)

    def answer(self, message: Message, schedule: Callable[[], tuple[Message, int]]) -> Message:
        """For an event: whether it could happen. For a call: what `schedule` decided."""
        try:
            self.take(message)
        except ImpossibleEvent:
            return {"taken": False}
        call = message.get("call")
        if call is None:
            return {"taken": True}
        self._before_call(call)
        answer, took = schedule()
        self._after_call(call)
        requests = self.manager.requests
        names = [name for name, _, _ in answer["chunks"]] + answer["extended"]
        scheduled = {name: requests[name] for name in names if name in requests}
        answer.update(
            scheduler_ns=took,
            faults=self.num_faults,
            requests=len(requests),
            blocks={name: len(request.block_tables) for name, request in scheduled.items()},
            need={name: request.need_prefill_tokens for name, request in scheduled.items()},
        )
        return answer

    def take(self, message: Message) -> None:
        """Apply the outputs that the engine knew, then the event, if there is one. CannotHappen."""
        for request_id, num_total_tokens in message["known"].items():
            self.set_known_tokens(request_id, num_total_tokens)
        event = message.get("event")
        if event is not None:
            kind, *arguments = event
            getattr(self, f"_{kind}")(*arguments)

    def set_known_tokens(self, request_id: str, num_total_tokens: int) -> None:
        """Append output until a request has `num_total_tokens`, as `TokenProcessor` had appended it by then."""
        request, statuses = self.manager.requests.get(request_id), self.statuses
        if request is None or (request.status == statuses.WAITING and request not in self.manager.running):
            return
        if request.status != statuses.PREEMPTED and request.num_computed_tokens < request.need_prefill_tokens:
            return  # a prefill generates no tokens that count
        output = request.output_token_ids
        num_new = num_total_tokens - request.num_total_tokens
        if num_new <= 0:
            return
        first, contents = self.contents[request_id]
        num_known = request.num_total_tokens
        for position in range(num_known, num_known + num_new):
            output.append(contents[min(position // self.block_size - first, len(contents) - 1)])
        if request.status == getattr(statuses, "RUNNING_PREFILL", None):
            request.status = statuses.RUNNING_DECODE

    # Events ---------------------------------------------------------------------------------------------------

    def _new_request(self, spec: Message) -> Any:
        if spec["id"] in self.manager.requests:
            raise ImpossibleEvent(spec["id"])
        request = self.new_request(spec)
        self.contents[spec["id"]] = request.prompt_token_ids_len // self.block_size, spec["contents"]
        return request

    def _queued(self, spec: Message) -> None:
        request = self._new_request(spec)
        if self.role != "mixed":
            request.disaggregate_info = {"role": self.role}
            self.asking[spec["id"]] = request
            return
        self.manager.add_request(request)
        for future in getattr(request, "async_process_futures", ()):
            future.result()
        request.async_process_futures = []  # each recorded call says what was not ready

    def _preallocated(self, request_id: str) -> None:
        request, manager = self.asking.pop(request_id), self.manager
        ask = (
            manager.preallocate_resource_in_p if self.role == "prefill" else manager.preallocate_resource_in_d
        )
        self.is_certain = True
        try:
            if not ask(request):
                raise ImpossibleEvent(request_id)
        finally:
            self.is_certain = False

    def _joined(self, request_id: str, token: int) -> None:
        self._check_is_in(request_id, self.manager.requests)
        self.roles.join(request_id, token)

    def _discarded(self, request_id: str) -> None:
        self._check_is_in(request_id, self.manager.requests)
        self.manager.pre_recycle_resource(request_id)

    def _aborted(self, request_id: str) -> None:
        self._check_is_in(request_id, self.manager.requests)
        self.manager.add_abort_req_ids([request_id])

    def _left(self, request_id: str) -> None:
        self._check_is_in(request_id, self.manager.requests)
        self.finishing[request_id] = Finishing(self.manager.finish_requests, request_id)

    def _freed(self, request_id: str) -> None:
        finishing = self.finishing.pop(request_id, None)
        if finishing is not None:
            finishing.end()
        elif request_id in self.leaving:
            self.manager._free_blocks(self.leaving.pop(request_id))

    def _requeued(self, request_id: str) -> None:
        self._check_is_in(request_id, self.manager.to_be_rescheduled_request_id_set)
        self.manager.reschedule_preempt_task(request_id)

    def _recycled(self, request_id: str) -> None:
        self._check_is_in(request_id, self.manager.to_be_aborted_req_id_set)
        self.manager.recycle_abort_task(request_id)

    def _output_cached(self, request_id: str, num_total_tokens: int) -> None:
        self.set_known_tokens(request_id, num_total_tokens)
        request = self.manager.requests.get(request_id)
        if request is not None:
            self.manager.cache_output_tokens(request)

    def _check_is_in(self, request_id: str, requests: Any) -> None:
        if request_id not in requests:
            raise ImpossibleEvent(request_id)

    # State at the begin of the recording: FastDeploy has no methods that set it ----------------------------------

    def _reserve(self, value: float, relaxed: bool) -> None:
        manager = self.manager
        if hasattr(manager, "new_token_ratio"):
            manager.new_token_ratio = value
            return
        manager.current_reserve_output_block_num_float = value
        manager.current_reserve_output_block_num = max(int(value), manager.min_reserve_output_block_num, 0)
        manager.can_relax_prefill_strategy = relaxed

    def _slot_lost(self) -> None:
        """The id of a request that ended while it was being aborted: it stays in its set."""
        names = self.manager.to_be_aborted_req_id_set
        names.add(f"ended while being aborted, {len(names)}")

    def _leaving(self, spec: Message, num_blocks: int, leaf: list[Any] | None) -> None:
        """A request that has left holds its blocks. No queue names it."""
        self.leaving[spec["id"]] = request = self.new_request(spec)
        if leaf is not None:
            self.found_cache.enter(request, *leaf)
        self._take_blocks(request, num_blocks)

    def _take_blocks(self, request: Any, num_blocks: int) -> None:
        """Allocate as many as it lacks."""
        num_missing = max(0, num_blocks - len(request.block_tables))
        request.block_tables.extend(self.manager.cache_manager.allocate_gpu_blocks(num_missing))

    def _cached(self, blocks: list[list[Any]], num_free: int) -> None:
        self.found_cache.add(blocks, num_free)

    def _found(self, spec: Message, state: Message) -> None:
        """A request that holds a slot: it runs, or a call has preempted or aborted it."""
        manager, request = self.manager, self._new_request(spec)
        slot = manager.get_available_position()
        manager.requests[request.request_id] = request
        manager.tasks_list[slot], manager.stop_flags[slot] = request, False
        manager.req_dict[request.request_id] = request.idx = slot
        request.need_prefill_tokens = state["num_prefill_tokens"] or request.prompt_token_ids_len
        request.status = self.statuses.PREEMPTED
        self.set_known_tokens(request.request_id, request.prompt_token_ids_len + state["num_emitted_tokens"])
        if state["place"] == "running":
            self._run(request, state)
        elif state["place"] == "preallocated":
            self._hold(request, state)
            request.status = self.statuses.WAITING
        elif state["place"] == "requeued":
            manager.waiting.append(request)
        elif state["place"] == "preempted":
            manager.to_be_rescheduled_request_id_set.add(request.request_id)
        else:
            manager.to_be_aborted_req_id_set.add(request.request_id)

    def _run(self, request: Any, state: Message) -> None:
        self._hold(request, state)
        self.manager.running.append(request)
        decodes = request.num_total_tokens > request.need_prefill_tokens
        for name in ("RUNNING_DECODE" if decodes else "RUNNING_PREFILL", "RUNNING"):
            if hasattr(self.statuses, name):
                request.status = getattr(self.statuses, name)
                return

    def _hold(self, request: Any, state: Message) -> None:
        """Give a request its blocks, with its place in the prefix cache."""
        manager, cache, computed = self.manager, self.manager.cache_manager, state["num_computed_tokens"]
        caching = manager.config.cache_config.enable_prefix_caching and state["leaf"] is None
        if caching:
            self._match_prefix(request, computed)
        elif state["leaf"] is not None:
            self.found_cache.enter(request, *state["leaf"])
        self._take_blocks(request, state["num_blocks"])
        if caching:
            cache.update_cache_blocks(request, self.block_size, computed)
        request.num_computed_tokens = computed

    def _match_prefix(self, request: Any, computed: int) -> None:
        """Take its blocks from the prefix cache: only those of the tokens that it has computed."""
        prompt, output, need = request.prompt_token_ids, request.output_token_ids, request.need_prefill_tokens
        request.prompt_token_ids, request.output_token_ids = (prompt + output)[:computed], []
        self.manager.get_prefix_cached_blocks(request)
        request.prompt_token_ids, request.output_token_ids = prompt, output
        request.need_prefill_tokens = need

    # The call -------------------------------------------------------------------------------------------------

    def _before_call(self, call: Message) -> None:
        """Set what the recorded call read of the state that changes without the lock."""
        self.found_cache.settle()
        self.needed, self.num_faults = list(call["needed"]), 0
        for request in self._present(call["not_ready"]):
            request.async_process_futures = [PendingPreprocessing()]
        for request in self._present(call["failed"]):
            request.async_process_futures, request.error_message = (
                [FailedPreprocessing()],
                "its preprocessing failed",
            )

    def _after_call(self, call: Message) -> None:
        """Remove what `_before_call` set."""
        for request in self._present(call["not_ready"]):
            request.async_process_futures = []
        for name in call["failed"]:
            self.manager.requests.pop(name, None)
        self.needed = []

    def _present(self, names: list[str]) -> list[Any]:
        return [self.manager.requests[name] for name in names if name in self.manager.requests]
