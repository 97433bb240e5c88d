"""Paddle, loaded late and quietly: how it is found, on which device it runs, what its allocator says."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from fdtrace.recorder.errors import FdtraceError, UsageError


class FrameworkMemory(NamedTuple):
    """The allocator's figures, bytes."""

    allocated_bytes: int
    reserved_bytes: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int


"""Allocated, reserved, peak allocated, peak reserved; bytes."""


def load(device: str = "cpu") -> Any:
    """The module `paddle`, set to `device` (`cpu`, `gpu`, or `auto`: a GPU where there is one).

    One compute thread unless OMP_NUM_THREADS says otherwise: the engine shares a small machine with its
    observer. Raises `FdtraceError` where Paddle is not installed, `UsageError` where there is no such device.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("GLOG_minloglevel", "2")
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # full float32: chunking must change no token
    try:
        with _stdout_to_stderr(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import paddle
    except ImportError as error:
        raise FdtraceError(
            "the sandbox engine needs Paddle",
            why=str(error),
            hint="pip install 'fdtrace[sandbox]' (or 'fdtrace[gpu]' for a GPU)",
        ) from error
    paddle.set_device(_resolve(paddle, device))
    paddle.set_grad_enabled(False)
    return paddle


def _resolve(paddle: Any, device: str) -> str:
    has_gpu = bool(paddle.is_compiled_with_cuda()) and paddle.device.cuda.device_count() > 0
    if device == "gpu" and not has_gpu:
        raise UsageError(
            "no GPU that this Paddle can use", hint="--device cpu, or pip install 'fdtrace[gpu]'"
        )
    return "gpu" if has_gpu and device in ("gpu", "auto") else "cpu"


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """What libraries print while they load goes to stderr, at the level of descriptors: stdout is data."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


class MemoryMeter:
    """Paddle's own allocator figures for the device in use."""

    def __init__(self, paddle: Any) -> None:
        self._read, self._reset = (
            _on_gpu(paddle) if paddle.device.get_device().startswith("gpu") else _on_cpu(paddle)
        )

    def reset_peak(self) -> None:
        """Let the peaks begin again at what is held."""
        self._reset()

    def read(self) -> FrameworkMemory | None:
        """Allocated, reserved and their peaks in bytes; None where this Paddle does not count."""
        try:
            return self._read()
        except (AttributeError, ValueError, RuntimeError):
            return None


def _on_gpu(paddle: Any) -> tuple[Callable[[], FrameworkMemory], Callable[[], None]]:
    cuda = paddle.device.cuda

    def read() -> FrameworkMemory:
        return FrameworkMemory(
            allocated_bytes=int(cuda.memory_allocated()),
            reserved_bytes=int(cuda.memory_reserved()),
            peak_allocated_bytes=int(cuda.max_memory_allocated()),
            peak_reserved_bytes=int(cuda.max_memory_reserved()),
        )

    def reset() -> None:
        cuda.reset_max_memory_allocated()
        cuda.reset_max_memory_reserved()

    return read, reset


def _on_cpu(paddle: Any) -> tuple[Callable[[], FrameworkMemory], Callable[[], None]]:
    core = paddle.base.core
    current: Any = getattr(core, "host_memory_stat_current_value", None)
    peak: Any = getattr(core, "host_memory_stat_peak_value", None)
    reset_one: Any = getattr(core, "host_memory_stat_reset_peak_value", None)

    def read() -> FrameworkMemory:
        if current is None or peak is None:
            raise AttributeError("this Paddle does not count host memory")
        return FrameworkMemory(
            allocated_bytes=int(current("Allocated", 0)),
            reserved_bytes=int(current("Reserved", 0)),
            peak_allocated_bytes=int(peak("Allocated", 0)),
            peak_reserved_bytes=int(peak("Reserved", 0)),
        )

    def reset() -> None:
        if reset_one is not None:
            reset_one("Allocated", 0)
            reset_one("Reserved", 0)

    return read, reset
