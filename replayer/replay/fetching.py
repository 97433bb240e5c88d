"""When a deployment's engine takes up a request that a client sent.

FastDeploy's engine keeps what clients send in a queue of its own, and hands its scheduler more only while no request
waits there: `EngineService._schedule_request_to_worker_v1` (engine/common_engine.py); since release 2.6 a thread of its
own looks every 20 ms (engine/common_engine_prepare_mixin.py, `_fetch_loop`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.workload.workload import WorkRequest

LOOKS_EVERY_MS = 20.1
"""Between two looks of release 2.6's thread: it sleeps 20 ms."""
MOST_AT_ONCE = 3
"""Requests fetched at once where prompts are prefilled whole: FastDeploy's MAX_PREFILL_NUM."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A request, and when its client sent it: milliseconds since the first recorded forward."""

    request: WorkRequest
    at: float


class ClientQueue:
    """Requests in the order in which clients sent them."""

    def __init__(self, config: SchedulerConfig, sent: Sequence[Sent]) -> None:
        self.config = config
        self._sent = sorted(sent, key=lambda one: one.at)
        self._next = 0

    def __len__(self) -> int:
        """Requests not fetched yet, those included that are not sent yet."""
        return len(self._sent) - self._next

    @property
    def next_at(self) -> float | None:
        """When the client sent the first one that was not fetched; None: there is none."""
        return self._sent[self._next].at if len(self) else None

    def fetch(self, now: float, num_free_slots: int) -> list[WorkRequest]:
        """Take the requests that one fetch brings.

        FastDeploy: `LocalScheduler.get_requests` (scheduler/local_scheduler.py). One request where prompts are
        prefilled in chunks; else some, while their prompts fit into the length of one sequence.
        """
        config = self.config
        most = 1 if config.chunked_prefill else min(MOST_AT_ONCE, num_free_slots)
        taken: list[WorkRequest] = []
        tokens = blocks = 0
        while len(taken) < min(most, num_free_slots) and len(self) and self._sent[self._next].at <= now:
            request = self._sent[self._next].request
            tokens += request.num_prompt_tokens
            blocks += -(-request.num_prompt_tokens // config.block_size)
            if taken and (tokens > config.max_model_len or blocks > config.max_blocks_per_seq):
                break
            taken.append(request)
            self._next += 1
        return taken
