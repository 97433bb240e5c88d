"""vLLM, the side that runs: time, padding and memory of each forward (v1/worker/*model_runner.py).

A `SchedulerOutput` without a number of ours does not belong to the recording. Nothing here waits for a device: the
allocator keeps its figures on the host. If the model runner samples in a separate call (`sample_tokens`), that call is
part of the step.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any, Callable, Iterable, NamedTuple

from . import torch_allocator, wire
from . import vllm_config as config
from .hooks import Hook
from .vllm import RAN, STAMP, MeasuredForward, VllmAdapter
from .writer import KeyframeRow

if TYPE_CHECKING:
    from .control import Agent
    from .writer import Writer

MODULES = tuple(
    "vllm.v1.worker.%s" % name
    for name in (
        "gpu_model_runner",
        "gpu.model_runner",
        "cpu_model_runner",
        "xpu_model_runner",
        "tpu_model_runner",
    )
)
"""vLLM's model runners: one module for each platform, and the second version of the GPU's."""

DRAFTERS = ("vllm.v1.spec_decode.llm_base_proposer", "vllm.v1.spec_decode.eagle")
"""Modules of the drafters that run a model. Their first pass runs the tokens of the batch and slots of their own."""


class DrafterPass(NamedTuple):
    """A pass of the drafter: its tokens, the size to which they were padded, and how many its buffers hold."""

    num_tokens: int
    num_padded_tokens: int
    limit_tokens: int


class ForwardUnderWay:
    """A forward that is under way: its output object, and what is known of it so far."""

    __slots__ = ("began", "drafted", "duration_us", "launched", "output", "ts")

    def __init__(self, output: Any) -> None:
        self.output, self.ts, self.began = output, time.time_ns(), time.perf_counter_ns()
        self.duration_us, self.launched = 0, -1
        self.drafted: DrafterPass | None = None

    def pause(self) -> None:
        """A call of the model runner has ended."""
        self.duration_us += (time.perf_counter_ns() - self.began) // 1000


class VllmWorkerAdapter:
    """Hooks every model runner of vLLM. A process has one."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        hooks = []
        for module in MODULES:
            hooks += [
                Hook(module, "", "execute_model", self.before_execute, self.after_execute, self.failed),
                Hook(module, "", "sample_tokens", self.before_sample, self.after_sample, self.failed),
                Hook(module, "", "_determine_batch_execution_and_padding", _nothing, self.after_padding),
                Hook(module, "", "_get_num_input_tokens", _nothing, self.after_padding),
                Hook(module, "", "prepare_inputs", _nothing, self.after_padding),
            ]
        hooks += [
            Hook(module, "", "_determine_batch_execution_and_padding", _nothing, self.after_drafter_padding)
            for module in DRAFTERS
        ]
        self.hooks = tuple(hooks)
        self.active = False

    def begin(self, writer: Writer) -> None:
        self.writer = writer
        self.active = False
        self.runner: Any = None
        self.rank = 0
        self.running: ForwardUnderWay | None = None
        self.memory: Callable[[], wire.AllocatorFigures] | None = None

    def describe(self) -> dict[str, Any]:
        rank = config.data_parallel_rank(getattr(self.runner, "vllm_config", None))
        return {
            "name": "vllm", "part": "rank", "rank": self.rank, "pid": os.getpid(), "host": socket.gethostname(),
            "dp_rank": rank,
        }  # fmt: skip

    def snapshot(self) -> Iterable[tuple[int, KeyframeRow]]:
        return ()

    def _engine(self) -> VllmAdapter | None:
        """The adapter of the scheduling side, if that side is in this process too."""
        for adapter in self.agent.adapters:
            if isinstance(adapter, VllmAdapter) and adapter.active:
                return adapter
        return None

    def before_execute(self, runner: Any, args: Any, kwargs: Any) -> ForwardUnderWay | None:
        output = args[0] if args else kwargs.get("scheduler_output")
        if getattr(output, STAMP, None) is None or self._is_running(output):
            return None
        if self.runner is None:
            self.runner, self.active = runner, True
            self.rank = getattr(getattr(runner, "parallel_config", None), "rank", 0) or 0
            self.memory = torch_allocator.reader(getattr(runner, "device", None))
        self.running = ForwardUnderWay(output)
        return self.running

    def _is_running(self, output: Any) -> bool:
        """Whether this is the call of a base class, made by a model runner that is derived from it."""
        return self.running is not None and self.running.output is output

    def after_padding(self, runner: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        """The size to which the batch was padded, for a captured graph or for other data-parallel ranks."""
        if self.running is None:
            return
        for padded in result if isinstance(result, tuple) else (result,):
            tokens = getattr(padded, "num_tokens_after_padding", getattr(padded, "num_tokens", padded))
            if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens > 0:
                self.running.launched = tokens
                return

    def after_drafter_padding(self, drafter: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        """The size of a pass of the drafter. The first is the largest: the others run a token of each request."""
        tokens = args[0] if args else kwargs.get("num_tokens")
        limit = getattr(drafter, "max_query_tokens", getattr(drafter, "max_num_tokens", None))
        if self.running is None or self.running.drafted is not None:
            return
        if isinstance(tokens, int) and isinstance(limit, int):
            padded = result[1] if isinstance(result, tuple) and isinstance(result[1], int) else tokens
            self.running.drafted = DrafterPass(tokens, padded, limit)

    def after_execute(self, runner: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        if not self._pause(token):
            return
        if result is not None or not hasattr(runner, "sample_tokens"):
            self._ran()

    def before_sample(self, runner: Any, args: Any, kwargs: Any) -> ForwardUnderWay | None:
        if self.running is not None:
            self.running.began = time.perf_counter_ns()
        return self.running

    def after_sample(self, runner: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        if self._pause(token):
            self._ran()

    def _pause(self, token: Any) -> bool:
        """Stop the clock of the forward `token`, if it is the one that is under way. Returns whether it is."""
        running = self.running
        if running is None or token is not running:
            return False
        running.pause()
        return True

    def failed(self, runner: Any, error: BaseException, token: Any) -> None:
        """A forward that ran out of memory is a step like any other. It emitted nothing."""
        if not self._pause(token):
            return
        self._ran()
        self.writer.event("error", None, "%s in the forward" % type(error).__name__)
        engine = self._engine()
        if engine is not None:
            engine.give_up()

    def _ran(self) -> None:
        ran, self.running = self.running, None
        assert ran is not None
        memory = self.memory() if self.memory is not None else torch_allocator.UNKNOWN
        token, call = getattr(ran.output, STAMP)
        if self._engine() is not None:
            setattr(ran.output, RAN, MeasuredForward(ran.ts, ran.duration_us, ran.launched, memory))
        else:
            goes_on = self.writer.has_keyframe
            self.writer.boundary()
            if not goes_on:
                self.writer.tasks(call, token)
            self.writer.memory(self.rank, call, 0, ran.ts, memory, ran.duration_us, ran.launched)
        drafted = ran.drafted
        if drafted is not None and max(drafted[:2]) > drafted.limit_tokens:
            self.writer.event("exceeded", None, "drafter", dict(drafted._asdict(), call=call))


def _nothing(runner: Any, args: Any, kwargs: Any) -> None:
    """A `before` for hooks that need only the result."""
