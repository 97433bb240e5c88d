"""A plugin of vLLM's, for tests: lets a CPU do what vLLM leaves to other devices. Loaded where this directory is in
PYTHONPATH; VLLM_TEST_ON_CPU names what is wanted.

`asynchronous`: `CpuPlatform` turns asynchronous scheduling off, which its model runner could do but for CUDA's streams
and events: there is nothing to wait for, so these are replaced by ones that do nothing.

`drafts`: model runners that refuse drafts on a CPU, or whose sampler asks for Triton, take them; a draft is accepted
where it is the likeliest token. Scheduler, n-grams, and what is done with the accepted, stay vLLM's own.
"""

# ruff: noqa: PLC0415 - loaded in processes that need one of these and not the others

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from typing import Any


class Done:
    """An event and a stream of a device that has always done what was asked."""

    device = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def query(self) -> bool:
        """Whether it is done."""
        return True

    def nothing(self, *args: Any) -> None:
        """There is nothing to do, or to wait for."""

    record = wait = synchronize = wait_stream = wait_event = nothing


@contextlib.contextmanager
def within(stream: Any) -> Iterator[None]:
    """`torch.cuda.stream`."""
    yield


def register() -> None:
    """Called by vLLM in each of its processes; only those with a model runner get what it needs."""
    wanted = os.environ.get("VLLM_TEST_ON_CPU", "").split(",")
    runs = multiprocessing.parent_process() is not None
    runs |= os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0"
    if "asynchronous" in wanted:
        keep_asynchronous()
    if "asynchronous" in wanted and runs:
        replace_streams()
    if "drafts" in wanted and runs:
        take_drafts()


def keep_asynchronous() -> None:
    """Leave the switch as it was before the platform was asked."""
    from vllm.platforms.cpu import CpuPlatform

    original = CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(cls: Any, config: Any) -> None:
        wanted = config.scheduler_config.async_scheduling
        original(cls, config)
        config.scheduler_config.async_scheduling = wanted

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)


def replace_streams() -> None:
    """What the model runner asks of CUDA in order to copy what was sampled beside the next forward."""
    import torch

    torch.Event = torch.cuda.Event = torch.cuda.Stream = Done
    torch.cuda.stream, torch.cuda.current_stream = within, Done


def take_drafts() -> None:
    """Do without the check that there are none, and without Triton's kernels."""
    from vllm.v1.sample import rejection_sampler
    from vllm.v1.worker import cpu_model_runner, gpu_model_runner

    rejection_sampler.rejection_sample = accepted
    rejection_sampler.expand_batch_to_tokens = spread
    base, runner = gpu_model_runner.GPUModelRunner, cpu_model_runner.CPUModelRunner
    made, checked = base.__init__, runner.__init__

    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        self.kept, self.speculative_config = self.speculative_config, None

    def check(self: Any, *args: Any, **kwargs: Any) -> None:
        checked(self, *args, **kwargs)
        self.speculative_config = self.kept

    base.__init__, runner.__init__ = make, check


def accepted(
    drafts: Any, counts: list[int], most: int, ends: Any, draft_probs: Any, target: Any, bonus: Any, *_: Any
) -> Any:
    """`rejection_sample`: [requests, most + 1] tokens, -1 after the first that is no draft."""
    import torch

    likeliest, first, rows = target.argmax(dim=-1).tolist(), 0, []
    for count, extra in zip(counts, bonus.flatten().tolist()):  # noqa: B905 - Python 3.9
        row = []
        for draft, token in zip(drafts[first : first + count].tolist(), likeliest[first : first + count]):  # noqa: B905
            row.append(token)
            if draft != token:
                break
        else:
            row.append(extra)
        rows.append(row + [-1] * (most + 1 - len(row)))
        first += count
    return torch.tensor(rows, dtype=torch.int32)


def spread(values: Any, ends: Any, count: int, replace_from: Any = 0, replace_to: Any = 0) -> Any:
    """`expand_batch_to_tokens`: each request's value for each of its tokens."""
    import torch

    each = torch.diff(ends, prepend=ends.new_zeros(1))
    old = getattr(replace_from, "value", replace_from)
    return torch.where(values == old, torch.full_like(values, replace_to), values).repeat_interleave(each)
