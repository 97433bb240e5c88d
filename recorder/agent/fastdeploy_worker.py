"""FastDeploy, the worker's side: what the model runner really ran (worker/*_model_runner.py).

Any class of those modules with `execute_model` is hooked. Its attributes, not its name, decide what is recorded. Only
values that are already on the host are read: `seq_lens_this_time_cpu` and `is_block_step_cpu`, for which the runner
itself has waited by the end of `execute_model`, and `accept_num_cpu`, which in overlap mode is ready in the next call.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from array import array
from typing import TYPE_CHECKING, Any, Callable, Iterable, NamedTuple

from . import fastdeploy_config as config
from . import wire
from .fastdeploy import STAMP
from .hooks import Hook
from .writer import KeyframeRow

if TYPE_CHECKING:
    from .control import Agent
    from .writer import Writer

MODULES = tuple(
    "fastdeploy.worker.%s_model_runner" % kind
    for kind in ("gpu", "xpu", "metax", "hpu", "gcu", "dcu", "iluvatar", "maca", "npu")
)
"""FastDeploy's model runners, a module for each platform."""

UNKNOWN_MEMORY = wire.AllocatorFigures()


class PendingForward(NamedTuple):
    """A forward that has run, but whose accepted tokens are not on the host yet."""

    number: int
    ts: int
    duration_us: int
    predicted: int
    memory: wire.AllocatorFigures
    prefills: dict[int, tuple[int, bool]]
    stalled: bytes
    tokens: Any


class FastDeployWorkerAdapter:
    """Hooks every model runner of FastDeploy. A process has one."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        hooks = []
        for module in MODULES:
            hooks += [
                Hook(module, "", "insert_tasks_v1", self.before_insert),
                Hook(
                    module, "", "execute_model", self.before_execute, self.after_execute, self.failed_execute
                ),
                Hook(module, "", "_save_model_output", self.before_save),
            ]
        self.hooks = tuple(hooks)
        self.active = False

    def begin(self, writer: Writer) -> None:
        self.writer = writer
        self.active = self.kinds_known = False
        self.runner: Any = None
        self.last_tasks: Any = None
        self.number = 0
        self.call, self.token, self.since = -1, 0, 0
        self.slots: dict[int, KeyframeRow] = {}
        self.ends: dict[int, int] = {}
        self.prefills: dict[int, tuple[int, bool]] = {}
        self.computed: Any = None
        self.pending: PendingForward | None = None
        self.memory: Callable[[], wire.AllocatorFigures] | None = None

    def describe(self) -> dict[str, Any]:
        row = config.describe(getattr(self.runner, "fd_config", None))
        row.update(
            part="rank" if self.rank else "worker", rank=self.rank, pid=os.getpid(), host=socket.gethostname()
        )
        return row

    def snapshot(self) -> Iterable[tuple[int, KeyframeRow]]:
        for slot, row in self.slots.items():
            computed = self.ends.get(slot, -1) if self.computed is None else int(self.computed[slot])
            if computed >= 0:
                yield slot, row._replace(num_computed_tokens=computed)

    def _begin_with(self, runner: Any) -> None:
        self.runner, self.active = runner, True
        self.rank = getattr(getattr(runner, "parallel_config", None), "tensor_parallel_rank", 0) or 0
        self.memory = allocator()
        role = getattr(getattr(runner, "fd_config", None), "scheduler_config", None)
        self.decodes = getattr(role, "splitwise_role", None) == "decode"
        self.alone = not any(adapter.active for adapter in self.agent.adapters if adapter is not self)

    def before_insert(self, runner: Any, args: Any, kwargs: Any) -> None:
        self._take(runner, args[0] if args else kwargs.get("req_dicts"))

    def before_execute(self, runner: Any, args: Any, kwargs: Any) -> tuple[int, int]:
        self._take(runner, args[0] if args else kwargs.get("model_forward_batch"))
        self.last_tasks = None
        return time.time_ns(), time.perf_counter_ns()

    def _take(self, runner: Any, tasks: Any) -> None:
        """Take in the tasks that the runner inserts. They come with `insert_tasks_v1`, and again with the forward."""
        if self.runner is None:
            self._begin_with(runner)
        self.writer.boundary()
        if tasks is None or tasks is self.last_tasks or not len(tasks):
            return
        self.last_tasks, self.kinds_known = tasks, True
        for task in tasks:
            stamp = getattr(task, STAMP, None)
            if stamp is not None and (stamp[0] != self.token or stamp[1] > self.call):
                # Without the engine's agent, which is ended first, a task has the stamp of an earlier call.
                self.token, self.call = stamp
                self.since = 0
                self.writer.tasks(self.call, self.token)
        if self.rank == 0:
            self._place(tasks)

    def _place(self, tasks: Any) -> None:
        vacated: list[int] = []
        joined: list[tuple[int, KeyframeRow]] = []
        held: list[tuple[int, int]] = []
        extended: list[tuple[int, int]] = []
        for task in tasks:
            slot, kind = task.idx, task.task_type.name
            occupant = self.slots.get(slot)
            if kind == "PREFILL":
                end = task.prefill_end_index
                self.prefills[slot] = end, end >= task.need_prefill_tokens
                if (
                    occupant is not None
                    and occupant.request_id == task.request_id
                    and self.ends.get(slot) == task.prefill_start_index
                ):
                    held.append((slot, len(task.block_tables)))
                else:
                    computed = end if self.decodes else task.prefill_start_index
                    joined.append((slot, self._placed(slot, config.running_row(task, computed))))
                self.ends[slot] = end
            elif kind == "DECODE":
                extended.append((slot, len(task.block_tables)))
                if occupant is not None and occupant.request_id != task.request_id:
                    row = KeyframeRow(task.request_id, -1, -1, -1, len(task.block_tables), -1, -1)
                    joined.append((slot, self._placed(slot, row)))
            elif kind in ("PREEMPTED", "ABORT"):
                vacated.append(slot)
                self._leave(slot)
        if vacated or joined:
            self.writer.batch(vacated, joined)
        if held:
            self.writer.blocks(held, False)
        if extended:
            self.writer.blocks(extended, True)

    def _placed(self, slot: int, row: KeyframeRow) -> KeyframeRow:
        self._leave(slot)
        self.slots[slot] = row
        return row

    def _leave(self, slot: int) -> None:
        occupant = self.slots.pop(slot, None)
        if occupant is not None and self.alone:
            self.writer.forget(occupant.request_id)
        self.ends.pop(slot, None)

    def after_execute(self, runner: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        if token is not None:
            self._end_forward(runner, token, False)

    def failed_execute(self, runner: Any, error: BaseException, token: Any) -> None:
        """A forward that ran out of memory is a step too. It emitted nothing."""
        overlap = getattr(runner, "enable_overlap_schedule", False)  # then its tokens may not be on the host
        if token is not None and not overlap and _was_running(error):
            self._end_forward(runner, token, True)
        self.writer.event("error", None, "%s in execute_model" % type(error).__name__)

    def _end_forward(self, runner: Any, token: tuple[int, int], failed: bool) -> None:
        if (
            not self.kinds_known
        ):  # tasks from before this recording may have run in it: its kinds are not known
            self.kinds_known = True
            return
        duration = (time.perf_counter_ns() - token[1]) // 1000
        prefills, self.prefills = self.prefills, {}
        inputs = runner.share_inputs
        try:
            on_host = inputs["seq_lens_this_time_cpu"]
        except KeyError:
            raise RuntimeError(
                "%s keeps no seq_lens_this_time_cpu: its tokens cannot be read without waiting for the device"
                % type(runner).__name__
            )
        tokens = self._by_slot(inputs, on_host)
        if not tokens.tobytes().strip(b"\0"):  # costs a tenth of `any` on an array
            return
        memory = self.memory() if self.memory is not None else UNKNOWN_MEMORY
        if self.rank:
            self.writer.memory(self.rank, self.call, self.since, token[0], memory)
            self.since += 1
            return
        overlap = bool(getattr(runner, "enable_overlap_schedule", False))
        predicted = int(runner.current_launch_token_num) if overlap else -1
        forward = PendingForward(
            self.number, token[0], duration, predicted, memory, prefills, self._stalled(inputs), tokens
        )
        self.number += 1
        if not overlap:
            self._write(runner, forward, failed)
            return
        if self.pending is not None:  # nothing was saved meanwhile, so nobody waited for sampled tokens
            self._write(runner, self.pending)
        self.pending = forward._replace(tokens=tokens.copy())

    def before_save(self, runner: Any, args: Any, kwargs: Any) -> None:
        """In overlap mode the last forward's accepted tokens are on the host now, and are not overwritten yet."""
        if self.pending is not None:
            forward, self.pending = self.pending, None
            self._write(runner, forward)

    def _write(self, runner: Any, forward: PendingForward, failed: bool = False) -> None:
        tokens = forward.tokens
        if failed:
            emitted = (tokens * 0).astype("int8")
        elif runner.speculative_decoding:
            inputs = runner.share_inputs
            emitted = self._by_slot(inputs, inputs["accept_num_cpu"])
        else:
            emitted = (tokens > 0).astype("int8")
        prefills = () if self.decodes else forward.prefills.items()
        rows = array("H", [slot | wire.LAST_CHUNK if last else slot for slot, (_, last) in prefills])
        self.writer.forward(
            forward.number, self.call, forward.ts, forward.duration_us, forward.predicted, forward.memory,
            rows.tobytes(), forward.stalled, tokens, emitted, wire.LANDED,
        )  # fmt: skip
        self._advance(forward, emitted)

    def _advance(self, forward: PendingForward, emitted: Any) -> None:
        """Count the computed tokens of each slot, for keyframes."""
        if self.computed is None:
            self.computed = forward.tokens * 0
        self.computed += emitted * (forward.tokens > 0)
        for slot, (end, last) in forward.prefills.items():
            self.computed[slot] = end + (emitted[slot] if self.decodes else last)

    def _stalled(self, inputs: Any) -> bytes:
        try:
            blocked = inputs["is_block_step_cpu"]
        except (KeyError, AttributeError, TypeError):
            return b""
        flags = self._by_slot(inputs, blocked).tobytes()
        if b"\1" not in flags:
            return b""
        return array("H", [slot for slot, flag in enumerate(flags) if flag]).tobytes()

    @staticmethod
    def _by_slot(inputs: Any, tensor: Any) -> Any:
        """A tensor of the batch as a flat array by slot. With pd_reorder the runner keeps it in another order."""
        values = tensor.numpy().reshape(-1)
        if getattr(inputs, "enable_pd_reorder", False):
            ordered = values * 0
            for index, slot in inputs.index_to_batch_id.items():
                ordered[slot] = values[index]
            return ordered
        return values


def _was_running(error: BaseException) -> bool:
    """Whether the forward itself failed. Then its inputs, and so its tokens, had been prepared."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name in ("_execute", "_postprocess"):
            return True
        trace = trace.tb_next
    return False


def allocator() -> Callable[[], wire.AllocatorFigures] | None:
    """A function that reads Paddle's allocator of this process's device; None if the device has none (a CPU)."""
    device = getattr(sys.modules.get("paddle"), "device", None)
    names = ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved")
    for module in (getattr(device, "cuda", None), getattr(device, "xpu", None), device):
        calls = [getattr(module, name, None) for name in names]
        if any(call is None for call in calls):
            continue
        read = _reader(calls)
        try:
            read()
        except Exception:  # Paddle was not built for that device
            continue
        return read
    return None


def _reader(calls: list[Any]) -> Callable[[], wire.AllocatorFigures]:
    allocated, reserved, peak_allocated, peak_reserved = calls

    def read() -> wire.AllocatorFigures:
        return wire.AllocatorFigures(allocated(), reserved(), peak_allocated(), peak_reserved())

    return read
