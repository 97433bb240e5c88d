"""transformers' continuous batching (generation/continuous_batching): its scheduler, its forwards, what they sampled.

All of it is one thread of the process that serves, the generation loop. A step is one `schedule_batch()` that handed
out tokens, the forward of that batch, and the `update_batch()` that takes in what the forward sampled. In asynchronous
batching the next batch is scheduled before that update. So the three are paired by the batch's `FutureRequestState`s.
The forward is written before the requests of the batch get their tokens: if the process is killed after that, nothing
that a client has seen is lost.
"""

from __future__ import annotations

import time
from array import array
from typing import TYPE_CHECKING, Any, Callable, Iterable, Tuple

from . import at_work, torch_allocator, wire
from . import transformers_config as config
from . import transformers_figures as figures
from .hooks import Hook
from .transformers_batch import BatchMembers, ScheduledBatch, sampled
from .transformers_figures import CallStart, KVBlocks
from .transformers_found import TransformersCheckpoints, find_requests, write_found
from .writer import KeyframeRow

if TYPE_CHECKING:
    from .control import Agent
    from .writer import Writer

PACKAGE = config.PACKAGE
API, SCHEDULER = PACKAGE + "continuous_api", PACKAGE + "scheduler"
OFFLOADING, RUNNER, OUTPUTS = (
    PACKAGE + name for name in ("offloading_manager", "model_runner", "input_outputs")
)


TimedFigures = Tuple[int, int, str, wire.CallFigures]
"""When a call began (UTC ns), its microseconds, why the head of the queue stayed, its figures."""


class TransformersAdapter:
    """Hooks the generation loop of one `ContinuousBatchingManager` at a time. In a tensor-parallel group only the
    driver records: the others decide the same.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        processor = "ContinuousBatchProcessor"
        self.hooks = (
            Hook(API, processor, "prepare_next_batch", self.before_prepare, self.after_prepare),
            Hook(API, processor, "_generation_step", self.before_forward, self.after_forward, self.failed),
            Hook(API, processor, "_handle_request_error", self.before_error),
            Hook(SCHEDULER, "", "schedule_batch", self.before_schedule, self.after_schedule),
            Hook(SCHEDULER, "Scheduler", "_try_to_meet_safety_margin", _nothing, self.after_margin),
            Hook(SCHEDULER, "Scheduler", "add_waiting_request", self.before_add),
            Hook(SCHEDULER, "Scheduler", "finish_request", self.before_finish),
            Hook(SCHEDULER, "Scheduler", "clear_cancelled_requests", self.before_cancel),
            Hook(
                OFFLOADING, "OffloadingManager", "offload_requests", self.before_offload, self.after_offload
            ),
            Hook(RUNNER, "ModelRunner", "maybe_pad_inputs", _nothing, self.after_padding),
            Hook(OUTPUTS, "", "prepare_batch_update", _nothing, self.after_outputs),
        )
        self.active = False

    def begin(self, writer: Writer) -> None:
        self.writer = writer
        self.active = self.begun = self.offloading = self.offloaded = False
        self.processor: Any = None
        self.scheduler: Any = None
        self.in_margin: bool | None = None
        self.call, self.number = -1, 0
        self.checkpoints = TransformersCheckpoints(self.agent.session)
        self.ended_call: tuple[ScheduledBatch | None, TimedFigures] | None = None
        self.calls: list[ScheduledBatch] = []
        self.current: ScheduledBatch | None = None
        self.batch = BatchMembers()
        self.ended: list[str] = []
        self.preempted = self.aborted = 0
        self.memory: Callable[[], wire.AllocatorFigures] | None = None
        processor = at_work.find(config.processor_of)
        if processor is not None and config.drives(processor):
            self._begin_with(processor)
            self.writer.engine(self.describe())

    def _begin_with(self, processor: Any) -> None:
        """Take in the requests that are there: a recording may begin at any moment, and a process may serve again."""
        for request_id in list(self.batch.rows):
            self.batch.forget(request_id)
        self.ended.clear()
        self.writer.first_step = 0  # only now: an armed process has the adapters of all engines
        self.processor, self.scheduler, self.active = processor, processor.scheduler, True
        self.blocks = KVBlocks(processor.cache)
        self.offloads = config.cpu_pool_size(processor) > 0
        self.memory = torch_allocator.reader(getattr(processor, "model_device", None))
        self.hash_block = config.block_hash(processor)
        self.begun = False

    def describe(self) -> dict[str, Any]:
        return config.describe(self.processor, self.blocks.num_blocks)

    def snapshot(self) -> Iterable[tuple[int, KeyframeRow]]:
        """The rows of the call that is about to be written, as before it. While idle: the running requests."""
        call, batch = self.current, self.batch
        for row, request_id in enumerate(call.ids if call is not None else batch.ids):
            state = batch.states.get(request_id)
            if state is None or request_id not in self.writer.numbers:
                continue
            yield row, batch.row(state, self._computed(call, request_id, state))

    def _computed(self, call: ScheduledBatch | None, request_id: str, state: Any) -> int:
        """Tokens of a request that were computed before a call (None: before the next one)."""
        for earlier in (*((call,) if call is not None else ()), *self.calls):
            if request_id in earlier.starts:
                return int(earlier.starts[request_id])
        if request_id in self.batch.prefilling:
            return int(state.position_offset)
        return len(state.initial_tokens) + len(state.generated_tokens)

    # Requests arrive and leave.

    def before_add(self, scheduler: Any, args: Any, kwargs: Any) -> None:
        """Until the recording begins, nothing is written: it begins with all requests that are there."""
        state = args[0] if args else kwargs["state"]
        if scheduler is self.scheduler and self.begun and state.request_id not in self.writer.numbers:
            self._arrived(state, time.time_ns())

    def _arrived(self, state: Any, ts: int) -> None:
        self.writer.request(state.request_id, ts, config.prompt_of(state), config.max_tokens_of(state))
        size = config.page_size(self.processor)
        if size and getattr(self.processor.cache, "use_prefix_sharing", False):
            hashes = config.prompt_hashes(state, size, self.hash_block)
            if hashes:
                self.writer.hashes(state.request_id, size, hashes)

    def before_finish(self, scheduler: Any, args: Any, kwargs: Any) -> None:
        request_id = args[0] if args else kwargs["request_id"]
        state = scheduler.active_requests.get(request_id)
        if scheduler is not self.scheduler or state is None or request_id not in self.writer.numbers:
            return
        if self.offloading:
            self._preempt(state)
        else:
            self._finish(state, config.finish_reason(state))

    def before_error(self, processor: Any, args: Any, kwargs: Any) -> None:
        state = args[1] if len(args) > 1 else kwargs["state"]
        if processor is self.processor and state.request_id in self.writer.numbers:
            self._finish(state, "error")

    def before_cancel(self, scheduler: Any, args: Any, kwargs: Any) -> None:
        if scheduler is not self.scheduler or not scheduler._requests_to_cancel:
            return
        for request_id in list(scheduler._requests_to_cancel):
            state = scheduler.active_requests.get(request_id) or scheduler.waiting_requests.get(request_id)
            if state is not None and request_id in self.writer.numbers:
                self.writer.event("aborted", request_id)
                self.aborted += request_id in self.batch.rows
                self._finish(state, "abort")

    def _finish(self, state: Any, reason: str) -> None:
        self.writer.finish(state.request_id, reason, config.outputs_of(state))
        self.ended.append(state.request_id)

    def before_offload(self, manager: Any, args: Any, kwargs: Any) -> None:
        self.offloading = getattr(manager, "scheduler", None) is self.scheduler

    def after_offload(self, manager: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        self.offloading, self.offloaded = False, True

    def _preempt(self, state: Any) -> None:
        """A request gave its blocks back. Their contents were offloaded to the CPU, or it is prefilled again."""
        request_id, offloaded = state.request_id, bool(getattr(state, "is_cpu_offloaded", False))
        detail = {
            "num_blocks": self.batch.held.get(request_id, 0),
            "num_computed_tokens": 0 if offloaded else state.position_offset,
            "num_offloaded_tokens": state.position_offset if offloaded else 0,
        }
        self.writer.event("preempted", request_id, "blocks", detail)
        self.preempted += 1
        self.batch.forget(request_id)

    # A call of schedule_batch().

    def before_prepare(self, processor: Any, args: Any, kwargs: Any) -> None:
        """A turn of the loop begins. If the last engine has nothing left to do, this may be another engine."""
        scheduler = self.scheduler
        self.writer.ahead = len(self.calls)
        free = scheduler is None or not scheduler.has_pending_requests()
        if processor is not self.processor and free and config.drives(processor):
            self._write_call()
            for call in list(self.calls):  # nobody will take its results
                self._write_forward(call, {})
            self._begin_with(processor)
            self.writer.has_keyframe = False
        if processor is self.processor:
            if not self.begun:
                self._take_in_requests()
            elif time.time_ns() >= self.checkpoints.next_ns:
                self.checkpoints.write(self.writer, processor, self.blocks)

    def _take_in_requests(self) -> None:
        """The recording begins here, in the loop's own thread: with all that runs or waits."""
        self.begun = True
        found = find_requests(self.processor)
        for state in (*found.running, *found.waiting):
            if state.request_id not in self.writer.numbers:
                self._arrived(state, -1)
        self.batch.take_in(found, self.blocks)
        self.writer.boundary()
        if not self.number:
            write_found(self.writer, self.processor, found, self.blocks)

    def after_prepare(self, processor: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        if processor is self.processor:
            self._write_call()
            self.writer.ahead = 0

    def before_schedule(self, scheduler: Any, args: Any, kwargs: Any) -> CallStart | None:
        if scheduler is not self.scheduler or not self.begun:
            return None
        self._write_call()
        for request_id in self.ended:
            self.batch.forget(request_id)
        self.ended.clear()
        self.in_margin = None
        budgets = (*args, *kwargs.values())
        decodes = len(self.batch.rows) - len(self.batch.prefilling)
        prefilling = len(scheduler.active_requests) - decodes
        return CallStart(
            time.time_ns(), time.perf_counter_ns(), decodes, prefilling, int(budgets[0]), int(budgets[1])
        )

    def after_margin(self, scheduler: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        self.in_margin = bool(result)

    def after_schedule(self, scheduler: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        if token is None:
            return
        duration = (time.perf_counter_ns() - token.began) // 1000
        end = figures.ended(result)
        head = figures.head_of(scheduler, self.offloads)
        why = figures.refusal(scheduler, head, self.blocks, token, end, self.in_margin)
        call = None
        if end.futures:
            for future in end.futures:  # a fork of a request is never added
                if future.state.request_id not in self.writer.numbers:
                    self._arrived(future.state, time.time_ns())
            call = ScheduledBatch(list(end.futures), token.ts)
            self.batch.apply(call, self.blocks)
            self.calls.append(call)
        call_figures = figures.of_call(
            scheduler, self.blocks, token, end, why, self.writer.numbers,
            chunks=len(call.prefills) if call else 0, admitted=len(call.joined) if call else 0,
            extended=len(call.extended) if call else 0,
        )  # fmt: skip
        self.ended_call = call, (token.ts, duration, why.reason, call_figures)

    def _write_call(self) -> None:
        """Write the last call, unless it is written. By now it is known which requests were preempted for it."""
        ended, self.ended_call = self.ended_call, None
        if ended is None:
            return
        call, (ts, duration, reason, call_figures) = ended
        if self.offloaded:  # this came after the call; it may evict only cached blocks
            head = figures.head_of(self.scheduler, self.offloads)
            head_number = -1 if head is None else self.writer.numbers.get(head.request_id, -1)
            reason, call_figures = figures.offloaded(
                self.scheduler, self.blocks, reason, call_figures, self.preempted, head_number
            )
        call_figures = call_figures._replace(num_aborted=self.aborted)
        self.preempted = self.aborted = 0
        self.offloaded = False
        self.call += 1
        if call is None:  # it found work and handed out nothing: an engine that hangs makes only such calls
            if not self.calls:  # what runs is known, so a segment can begin here
                self.writer.boundary()
            self.writer.schedule(self.call, ts, duration, reason, call_figures, wire.EMPTY)
            return
        call.schedule = self.call, ts, duration, reason, call_figures
        self.writer.schedule(*call.schedule)

    # Its forward.

    def after_padding(self, runner: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        if self.calls and self.processor is not None and runner is self.processor.model_runner:
            self.calls[-1].launched = int(result[0])

    def before_forward(self, processor: Any, args: Any, kwargs: Any) -> ScheduledBatch | None:
        if processor is not self.processor or not self.calls or self.calls[-1].began:
            return None
        call = self.calls[-1]
        call.began = time.time_ns()
        call.forward_us = time.perf_counter_ns()
        return call

    def after_forward(self, processor: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        if token is not None:
            self._end_forward(token)

    def _end_forward(self, call: ScheduledBatch) -> None:
        call.forward_us = (time.perf_counter_ns() - call.forward_us) // 1000
        if self.memory is not None:
            call.memory = self.memory()

    def failed(self, processor: Any, error: BaseException, token: Any) -> None:
        """A forward that ran out of memory is a step too. It emitted nothing, and neither will the calls before it."""
        if token is None:
            return
        self._end_forward(token)
        for call in list(self.calls):
            self._write_forward(call, {})
        self.writer.event("error", None, "%s in the forward" % type(error).__name__)

    def after_outputs(self, outputs: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        """A batch is about to be updated with what its forward sampled."""
        futures, tokens = result[0], result[1]
        for call in self.calls:
            if call.is_of(futures):
                for earlier in self.calls[: self.calls.index(call)]:
                    self._write_forward(earlier, {})
                self._write_forward(call, sampled(futures, tokens))
                return
        self.batch.sampling.clear()  # it was in flight when the recording began

    def _write_forward(self, call: ScheduledBatch, emitted: dict[int, int]) -> None:
        """Write the forward of a call. `emitted`: place of a future in the batch -> tokens that it takes."""
        writer = self.writer
        self._write_call()
        self.calls.remove(call)
        self.current = call
        writer.boundary()
        self.current = None
        if call.vacated or call.joined:  # a request may have been aborted since the call
            writer.batch(call.vacated, [row for row in call.joined if row[1].request_id in writer.numbers])
        for pairs, extended in ((call.extended, True), (call.held, False)):
            if pairs:
                writer.blocks(pairs, extended)
        emitted_by_row = array("h", bytes(2 * len(call.tokens)))
        for place, count in emitted.items():
            emitted_by_row[call.row_of[place]] = count
        writer.forward(
            self.number, call.schedule[0], call.began or call.ts, call.forward_us, call.launched, call.memory,
            array("H", call.prefills).tobytes(), array("H", call.stalled).tobytes(),
            memoryview(call.tokens), memoryview(emitted_by_row),
        )  # fmt: skip
        self.number += 1


def _nothing(subject: Any, args: Any, kwargs: Any) -> None:
    """For a hook that needs only the result."""
