"""Requests and tasks, with the attributes of FastDeploy's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any


class RequestStatus(Enum):
    WAITING = 0
    RUNNING = 1
    PREEMPTED = 2


class RequestType(Enum):
    PREFILL = 0
    DECODE = 1
    PREEMPTED = 2
    EXTEND = 3
    ABORT = 4


def prefix(request_id: str) -> int:
    return int(request_id.rpartition("r")[2]) % 3


class Request:
    def __init__(self, request_id: str, prompt: int, max_tokens: int) -> None:
        self.request_id, self.prompt_token_ids_len = request_id, prompt
        # The first 16 tokens are those of every third request.
        self.prompt_token_ids = [
            prefix(request_id) if at < 16 else 1000 + at + prompt for at in range(prompt)
        ]
        self.sampling_params = SimpleNamespace(max_tokens=max_tokens)
        self.output_token_ids: list[int] = []
        self.block_tables: list[int] = []
        self.need_prefill_tokens = prompt
        self.num_computed_tokens = self.num_cached_tokens = 0
        self.prefill_start_index = self.prefill_end_index = 0
        self.status, self.task_type = RequestStatus.WAITING, RequestType.PREFILL
        self.idx: int | None = None
        self.async_process_futures: list[Any] = []

    @property
    def num_total_tokens(self) -> int:
        return self.prompt_token_ids_len + len(self.output_token_ids)


@dataclass
class Task:
    """A task that is not a prefill."""

    idx: int
    request_id: str
    task_type: RequestType
    block_tables: list[int] = field(default_factory=list)


class BatchRequest:
    """What newer versions return in place of a list."""

    def __init__(self) -> None:
        self.requests: list[Any] = []

    def append(self, task: Any) -> None:
        self.requests.append(task)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)
