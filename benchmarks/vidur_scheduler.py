"""microsoft/vidur's Sarathi replica scheduler on the work that benchmarks/reschedule.py gives it on stdin.

Run by a Python that has vidur (`pip install vidur`). One batch a step; it is counted as run at once.
"""

import contextlib
import json
import sys
import time
from types import SimpleNamespace
from typing import Any


def scheduler_of(work: dict[str, Any]) -> Any:
    """Its scheduler with these sizes; the execution-time predictor is not asked."""
    from vidur.config import CacheConfig, ReplicaConfig, SarathiSchedulerConfig
    from vidur.entities import Replica
    from vidur.scheduler.replica_scheduler.sarathi_replica_scheduler import SarathiReplicaScheduler

    replica = ReplicaConfig()
    cache = CacheConfig(block_size=work["block_size"], num_blocks=work["num_blocks"])
    generator = SimpleNamespace(max_tokens=work["max_tokens"])
    settings = SarathiSchedulerConfig(batch_size_cap=work["max_num_seqs"], chunk_size=work["chunk_size"])
    return SarathiReplicaScheduler(
        replica, settings, cache, generator, Replica(replica), 1, SimpleNamespace()
    )


def run(work: dict[str, Any]) -> tuple[int, float, float]:
    """Steps, and the CPU seconds that its code took for them."""
    from vidur.entities import Request

    scheduler = scheduler_of(work)
    pending = [Request(float(arrival), prompt, decodes) for arrival, prompt, decodes in work["requests"]]
    pending.reverse()
    steps = running = 0
    began = time.process_time()
    while steps < work["steps"]:
        now = float(steps)
        while pending and pending[-1].arrived_at <= now:
            scheduler.add_request(pending.pop())
        batch = scheduler.on_schedule(now)
        if batch is None:
            break
        batch.on_schedule(now)
        for request, num_tokens in zip(batch.requests, batch.num_q_tokens, strict=True):  # its one stage
            request.on_batch_stage_end(now, 0, 0.0, 0.0, num_tokens)
        batch.on_batch_end(now)
        scheduler.on_stage_end(0, None)
        scheduler.on_batch_end(batch)
        steps += 1
        running += len(batch.requests)
    return steps, running / max(steps, 1), time.process_time() - began


def main() -> None:
    work = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        steps, running, seconds = run(work)
    found = {
        "scheduler": "vidur sarathi",
        "steps": steps,
        "mean_running": round(running, 1),
        "cpu_seconds": round(seconds, 3),
        "steps_per_s": round(steps / seconds),
        "us_per_step": round(seconds / steps * 1e6, 1),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
