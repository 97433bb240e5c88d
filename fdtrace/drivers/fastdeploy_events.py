"""A driven FastDeploy scheduler led through the events of a recording, one after another, by its own methods.

Loaded by `fastdeploy_driver.py`, which runs as a file of its own. Nothing is played here. The recording says when
requests came, how many of their tokens the engine knew, and when they ended, were put back and were forgotten.
FastDeploy's code decides what follows. If it has no method for an event, its state is set as the engine does it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdtrace.drivers.driver_protocol import Message


class CannotHappen(Exception):
    """An event names a request that is not in a state in which it can happen: the replay has departed before."""


class Pending:
    """The preprocessing of a request that was not done when the recorded call looked."""

    def done(self) -> bool:
        return False


class Ended:
    """The preprocessing of a request that has failed by then."""

    def done(self) -> bool:
        return True


class Finishing:
    """One `finish_requests`, in a thread of its own: it stops between its two sections of the lock."""

    def __init__(self, finish: Callable[[str], Any], request_id: str) -> None:
        self._stopped, self._goes_on = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(finish, request_id), daemon=True)
        self._thread.start()
        self._stopped.wait()

    def _run(self, finish: Callable[[str], Any], request_id: str) -> None:
        _HERE.finishing = self
        try:
            finish(request_id)
        finally:
            self._stopped.set()  # also where it ends without a second section

    def wait(self) -> None:
        """Called in its thread, the first section being over."""
        self._stopped.set()
        self._goes_on.wait()

    def end(self) -> None:
        """Let it run its second section."""
        self._goes_on.set()
        self._thread.join()


_HERE = threading.local()
"""`finishing`: whose thread this is."""

BETWEEN = "write_cache_to_storage"
"""What `finish_requests` calls of the cache manager between its two sections, for a request that was running."""

THRESHOLD = "_get_can_schedule_prefill_threshold_block"


class RecordedEvents:
    """Takes events and calls for one `ResourceManagerV1`, whose requests `new_request` makes of what describes them."""

    def __init__(self, manager: Any, new_request: Callable[[Message], Any], statuses: Any) -> None:
        self.manager, self.new_request, self.statuses = manager, new_request, statuses
        self.block_size = manager.config.cache_config.block_size
        self.contents: dict[str, tuple[int, list[int]]] = {}
        """Of each request: the block in which its output begins, and what token each block from there is made of."""
        self.finishing: dict[str, Finishing] = {}
        self.needed: list[int] = []
        self.num_faults = 0
        self._stop_between_sections()
        self._take_recorded_thresholds()

    def _stop_between_sections(self) -> None:
        cache = self.manager.cache_manager
        write = getattr(cache, BETWEEN)

        def between(request: Any) -> Any:
            finishing = getattr(_HERE, "finishing", None)
            if finishing is not None:
                finishing.wait()
            return write(request)

        setattr(cache, BETWEEN, between)

    def _take_recorded_thresholds(self) -> None:
        """Release 2.6 reads outputs that change while a call runs: what the recorded one asked for is taken, within
        what such outputs explain; anything else is a fault.
        """
        manager, own = self.manager, getattr(self.manager, THRESHOLD)

        def threshold(num_new_blocks: int) -> int:
            needed = int(own(num_new_blocks))
            if not self.needed:
                return needed
            given = self.needed.pop(0)
            if not needed - len(manager.running) <= given <= needed:
                self.num_faults += 1
            return given if given >= min(num_new_blocks, needed) else needed

        setattr(manager, THRESHOLD, threshold)

    def answer(self, message: Message, schedule: Callable[[], tuple[Message, int]]) -> Message:
        """To an event, whether it could happen; to a call, what `schedule` decided."""
        try:
            self.take(message)
        except CannotHappen:
            return {"taken": False}
        call = message.get("call")
        if call is None:
            return {"taken": True}
        self._before_call(call)
        answer, took = schedule()
        self._after_call(call)
        requests = self.manager.requests
        named = [name for name, _, _ in answer["chunks"]] + answer["extended"]
        held = {name: requests[name] for name in named if name in requests}
        answer.update(
            scheduler_ns=took,
            faults=self.num_faults,
            requests=len(requests),
            blocks={name: len(request.block_tables) for name, request in held.items()},
            need={name: request.need_prefill_tokens for name, request in held.items()},
        )
        return answer

    def take(self, message: Message) -> None:
        """What the engine knew of outputs, then an event, where there is one. CannotHappen."""
        for request_id, num_total_tokens in message["known"].items():
            self.know(request_id, num_total_tokens)
        event = message.get("event")
        if event is not None:
            kind, *given = event
            getattr(self, f"_{kind}")(*given)

    def know(self, request_id: str, num_total_tokens: int) -> None:
        """So many tokens of prompt and output are known of a request, as `TokenProcessor` has appended them by then."""
        request, statuses = self.manager.requests.get(request_id), self.statuses
        if request is None or request.status == statuses.WAITING:
            return
        if request.status != statuses.PREEMPTED and request.num_computed_tokens < request.need_prefill_tokens:
            return  # a prefill makes no tokens that count
        output = request.output_token_ids
        new = num_total_tokens - request.num_total_tokens
        if new <= 0:
            return
        first, contents = self.contents[request_id]
        at = request.num_total_tokens
        for position in range(at, at + new):
            output.append(contents[min(position // self.block_size - first, len(contents) - 1)])
        if request.status == getattr(statuses, "RUNNING_PREFILL", None):
            request.status = statuses.RUNNING_DECODE

    # Events ---------------------------------------------------------------------------------------------------

    def _new(self, spec: Message) -> Any:
        if spec["id"] in self.manager.requests:
            raise CannotHappen(spec["id"])
        request = self.new_request(spec)
        self.contents[spec["id"]] = request.prompt_token_ids_len // self.block_size, spec["contents"]
        return request

    def _queued(self, spec: Message) -> None:
        request = self._new(spec)
        self.manager.add_request(request)
        for future in getattr(request, "async_process_futures", ()):
            future.result()
        request.async_process_futures = []  # a call says itself what was not ready

    def _aborted(self, request_id: str) -> None:
        self._there(request_id, self.manager.requests)
        self.manager.add_abort_req_ids([request_id])

    def _left(self, request_id: str) -> None:
        self._there(request_id, self.manager.requests)
        self.finishing[request_id] = Finishing(self.manager.finish_requests, request_id)

    def _freed(self, request_id: str) -> None:
        finishing = self.finishing.pop(request_id, None)
        if finishing is not None:
            finishing.end()

    def _requeued(self, request_id: str) -> None:
        self._there(request_id, self.manager.to_be_rescheduled_request_id_set)
        self.manager.reschedule_preempt_task(request_id)

    def _recycled(self, request_id: str) -> None:
        self._there(request_id, self.manager.to_be_aborted_req_id_set)
        self.manager.recycle_abort_task(request_id)

    def _output_cached(self, request_id: str, num_total_tokens: int) -> None:
        self.know(request_id, num_total_tokens)
        request = self.manager.requests.get(request_id)
        if request is not None:
            self.manager.cache_output_tokens(request)

    def _there(self, request_id: str, where: Any) -> None:
        if request_id not in where:
            raise CannotHappen(request_id)

    # What was there when the recording began: FastDeploy has no methods that put a request there ----------------

    def _reserve(self, value: float, relaxed: bool) -> None:
        manager = self.manager
        if hasattr(manager, "new_token_ratio"):
            manager.new_token_ratio = value
            return
        manager.current_reserve_output_block_num_float = value
        manager.current_reserve_output_block_num = max(int(value), manager.min_reserve_output_block_num, 0)
        manager.can_relax_prefill_strategy = relaxed

    def _found(self, spec: Message, state: Message) -> None:
        """A request that holds a slot: it runs, or a call has preempted or aborted it."""
        manager, request = self.manager, self._new(spec)
        slot = manager.get_available_position()
        manager.requests[request.request_id] = request
        manager.tasks_list[slot], manager.stop_flags[slot] = request, False
        manager.req_dict[request.request_id] = request.idx = slot
        request.need_prefill_tokens = state["num_prefill_tokens"] or request.prompt_token_ids_len
        request.status = self.statuses.PREEMPTED
        self.know(request.request_id, request.prompt_token_ids_len + state["num_emitted_tokens"])
        if state["place"] == "running":
            self._run(request, state)
        elif state["place"] == "requeued":
            manager.waiting.append(request)
        elif state["place"] == "preempted":
            manager.to_be_rescheduled_request_id_set.add(request.request_id)
        else:
            manager.to_be_aborted_req_id_set.add(request.request_id)

    def _run(self, request: Any, state: Message) -> None:
        manager, cache, computed = self.manager, self.manager.cache_manager, state["num_computed_tokens"]
        caching = manager.config.cache_config.enable_prefix_caching
        if caching:
            self._match(request, computed)
        request.block_tables.extend(
            cache.allocate_gpu_blocks(max(0, state["num_blocks"] - len(request.block_tables)))
        )
        if caching:
            cache.update_cache_blocks(request, self.block_size, computed)
        request.num_computed_tokens = computed
        manager.running.append(request)
        decodes = request.num_total_tokens > request.need_prefill_tokens
        for name in ("RUNNING_DECODE" if decodes else "RUNNING_PREFILL", "RUNNING"):
            if hasattr(self.statuses, name):
                request.status = getattr(self.statuses, name)
                return

    def _match(self, request: Any, computed: int) -> None:
        """Its blocks of the prefix cache: those of what it computed, and no more."""
        prompt, output, need = request.prompt_token_ids, request.output_token_ids, request.need_prefill_tokens
        request.prompt_token_ids, request.output_token_ids = (prompt + output)[:computed], []
        self.manager.get_prefix_cached_blocks(request)
        request.prompt_token_ids, request.output_token_ids = prompt, output
        request.need_prefill_tokens = need

    # The call -------------------------------------------------------------------------------------------------

    def _before_call(self, call: Message) -> None:
        """What the recorded call used of what changes without the lock."""
        self.needed, self.num_faults = list(call["needed"]), 0
        for request in self._named(call["not_ready"]):
            request.async_process_futures = [Pending()]
        for request in self._named(call["failed"]):
            request.async_process_futures, request.error_message = [Ended()], "its preprocessing failed"

    def _after_call(self, call: Message) -> None:
        """The call is over."""
        for request in self._named(call["not_ready"]):
            request.async_process_futures = []
        for name in call["failed"]:
            self.manager.requests.pop(name, None)
        self.needed = []

    def _named(self, names: list[str]) -> list[Any]:
        return [self.manager.requests[name] for name in names if name in self.manager.requests]
