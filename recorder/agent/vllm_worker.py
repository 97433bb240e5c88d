"""vLLM, the side that runs: time, padding and memory of each forward (v1/worker/*model_runner.py).

A `SchedulerOutput` that carries no number of ours is no part of the recording. Nothing here waits for a device: the
allocator keeps its figures on the host. Where the model runner samples in a call of its own (`sample_tokens`), that is
part of the step.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any, Callable, Iterable

from . import torch_allocator, wire
from . import vllm_config as config
from .hooks import Hook
from .vllm import RAN, STAMP, Ran, VllmAdapter
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
"""vLLM's model runners: a module for each platform, and the second version of the GPU's."""


class Running:
    """A forward on its way: its output object, and what is known of it so far."""

    __slots__ = ("began", "duration_us", "launched", "output", "ts")

    def __init__(self, output: Any) -> None:
        self.output, self.ts, self.began = output, time.time_ns(), time.perf_counter_ns()
        self.duration_us, self.launched = 0, -1

    def pause(self) -> None:
        """A call of the model runner ended."""
        self.duration_us += (time.perf_counter_ns() - self.began) // 1000


class VllmWorkerAdapter:
    """Hooks every model runner of vLLM; one a process."""

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
        self.hooks = tuple(hooks)
        self.active = False

    def begin(self, writer: Writer) -> None:
        self.writer = writer
        self.active = False
        self.runner: Any = None
        self.rank = 0
        self.running: Running | None = None
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
        """The scheduling side, where it is in this process too."""
        for adapter in self.agent.adapters:
            if isinstance(adapter, VllmAdapter) and adapter.active:
                return adapter
        return None

    def before_execute(self, runner: Any, args: Any, kwargs: Any) -> Running | None:
        output = args[0] if args else kwargs.get("scheduler_output")
        if getattr(output, STAMP, None) is None or self._is_running(output):
            return None
        if self.runner is None:
            self.runner, self.active = runner, True
            self.rank = getattr(getattr(runner, "parallel_config", None), "rank", 0) or 0
            self.memory = torch_allocator.reader(getattr(runner, "device", None))
        self.running = Running(output)
        return self.running

    def _is_running(self, output: Any) -> bool:
        """Whether a runner has called the one that it is derived from."""
        return self.running is not None and self.running.output is output

    def after_padding(self, runner: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        """What the batch was padded to, for a captured graph or for other data-parallel ranks."""
        if self.running is None:
            return
        for padded in result if isinstance(result, tuple) else (result,):
            tokens = getattr(padded, "num_tokens_after_padding", getattr(padded, "num_tokens", padded))
            if isinstance(tokens, int) and not isinstance(tokens, bool) and tokens > 0:
                self.running.launched = tokens
                return

    def after_execute(self, runner: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        if not self._pause(token):
            return
        if result is not None or not hasattr(runner, "sample_tokens"):
            self._ran()

    def before_sample(self, runner: Any, args: Any, kwargs: Any) -> Running | None:
        if self.running is not None:
            self.running.began = time.perf_counter_ns()
        return self.running

    def after_sample(self, runner: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        if self._pause(token):
            self._ran()

    def _pause(self, token: Any) -> bool:
        """Stop the clock of the forward that `token` is, if it is the one on its way."""
        running = self.running
        if running is None or token is not running:
            return False
        running.pause()
        return True

    def failed(self, runner: Any, error: BaseException, token: Any) -> None:
        """The forward that ran out of memory is a step like any other; it emitted nothing."""
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
        if self._engine() is not None:
            setattr(ran.output, RAN, Ran(ran.ts, ran.duration_us, ran.launched, memory))
            return
        token, call = getattr(ran.output, STAMP)
        goes_on = self.writer.has_keyframe
        self.writer.boundary()
        if not goes_on:
            self.writer.tasks(call, token)
        self.writer.memory(self.rank, call, 0, ran.ts, memory, ran.duration_us, ran.launched)


def _nothing(runner: Any, args: Any, kwargs: Any) -> None:
    """A hook that only asks for the result."""
