"""When the engine of a deployment fetches a request that a client sent.

FastDeploy's engine keeps the requests of clients in its own queue. It gives its scheduler more only while no request
waits there: `EngineService._schedule_request_to_worker_v1` (engine/common_engine.py). Since release 2.6 a separate
thread looks every 20 ms (engine/common_engine_prepare_mixin.py, `_fetch_loop`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.workload.workload import WorkRequest

LOOK_INTERVAL_MS = 20.1
"""Time between two looks of release 2.6's thread, which sleeps 20 ms."""
MOST_AT_ONCE = 3
"""Requests fetched at once if prompts are prefilled whole: FastDeploy's MAX_PREFILL_NUM."""


@dataclass(frozen=True, slots=True)
class SentRequest:
    """A request, and when its client sent it: milliseconds since the first recorded forward."""

    request: WorkRequest
    at: float


class ClientQueue:
    """Requests in the order in which clients sent them."""

    def __init__(self, config: SchedulerConfig, sent: Sequence[SentRequest]) -> None:
        self.config = config
        self._sent = sorted(sent, key=lambda request: request.at)
        self._next = 0

    def __len__(self) -> int:
        """Requests not fetched yet, including those not sent yet."""
        return len(self._sent) - self._next

    @property
    def next_at(self) -> float | None:
        """When the first request that is not fetched yet was sent; None: there is none."""
        return self._sent[self._next].at if len(self) else None

    def fetch(self, now: float, num_free_slots: int) -> list[WorkRequest]:
        """Take the requests that one fetch brings.

        FastDeploy: `LocalScheduler.get_requests` (scheduler/local_scheduler.py). One request if prompts are prefilled
        in chunks; else several, while their prompts together fit into the length of one sequence.
        """
        config = self.config
        max_requests = 1 if config.chunked_prefill else min(MOST_AT_ONCE, num_free_slots)
        requests: list[WorkRequest] = []
        tokens = blocks = 0
        while (
            len(requests) < min(max_requests, num_free_slots)
            and len(self)
            and self._sent[self._next].at <= now
        ):
            request = self._sent[self._next].request
            tokens += request.num_prompt_tokens
            blocks += -(-request.num_prompt_tokens // config.block_size)
            if requests and (tokens > config.max_model_len or blocks > config.max_blocks_per_seq):
                break
            requests.append(request)
            self._next += 1
        return requests
