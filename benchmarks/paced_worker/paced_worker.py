"""A plugin of vLLM's, for benchmarks: the worker takes as long for a batch as a formula says, in the shape of a GPU.

Scheduler, engine, API server and clients stay vLLM's own, and run in real time. The worker of a tiny model runs its
forward, then sleeps until the time of the batch has passed. If the engine was busy, that time counts from the end of
the forward before: as on a GPU that goes on while the host schedules. Else the host's own time, which changes by 1.5 ms
from run to run, would make equal steps up to 5% longer or shorter. So two runs with equal settings are much closer to
each other than on a CPU that computes. vLLM loads it where this directory is in PYTHONPATH.

PACED_WORKER_LOG names a file that gets, in milliseconds, the time from that end to the end of each real forward, and
the time of its batch: a forward that takes longer than its batch may breaks the pace.
"""

# ruff: noqa: PLC0415 - loaded in processes that need one of these and not the others

from __future__ import annotations

import os
import time
from typing import Any

MOST_HOST_S = 0.012
"""A longer time between two forwards is one in which the engine had nothing to do."""


def batch_ms(output: Any) -> float:
    """Milliseconds of a batch (a `SchedulerOutput`): fixed costs, and memory or arithmetic, whichever takes longer.

    Memory: the weights and the KV tokens that are read. Arithmetic: the tokens, and the attention of the chunks.
    """
    computed = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
    cached = output.scheduled_cached_reqs
    computed |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    tokens = output.num_scheduled_tokens
    read: int = sum(computed.values())
    chunks = ((num, computed[name]) for name, num in tokens.items() if num > 1)
    attention: float = sum(num * (before + num / 2) for num, before in chunks)
    total: int = sum(tokens.values())
    return 6.0 + max(14.0 + 0.0025 * read, 0.13 * total + 0.0001 * attention)


def register() -> None:
    """Called by vLLM in each of its processes."""
    from vllm.v1.worker.gpu_worker import Worker

    real = Worker.execute_model
    path = os.environ.get("PACED_WORKER_LOG")
    ended = 0.0
    log = open(f"{path}.{os.getpid()}", "a", buffering=1) if path else None  # noqa: SIM115 - as long as the process

    def execute_model(self: Any, scheduler_output: Any) -> Any:
        nonlocal ended
        begun = time.perf_counter()
        begun = ended if begun - ended < MOST_HOST_S else begun
        answer = real(self, scheduler_output)
        if scheduler_output.total_num_scheduled_tokens:
            took, wanted = (time.perf_counter() - begun) * 1e3, batch_ms(scheduler_output)
            time.sleep(max(0.0, wanted - took) / 1e3)
            ended = time.perf_counter()
            if log is not None:
                print(f"{took:.2f} {wanted:.2f}", file=log)
        return answer

    Worker.execute_model = execute_model
