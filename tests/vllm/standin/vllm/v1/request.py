"""A request, with the attributes that vLLM's own has."""

from __future__ import annotations

import enum
import hashlib
import time

SENT_BEFORE = 0.25
"""Seconds between the arrival at the API server and this scheduler."""


class RequestStatus(enum.IntEnum):
    WAITING = enum.auto()
    WAITING_FOR_REMOTE_KVS = enum.auto()
    RUNNING = enum.auto()
    PREEMPTED = enum.auto()
    FINISHED_STOPPED = enum.auto()
    FINISHED_LENGTH_CAPPED = enum.auto()
    FINISHED_ABORTED = enum.auto()


class Request:
    def __init__(
        self, request_id: str, prompt: int, max_tokens: int, family: int = -1, priority: int = 0
    ) -> None:
        self.priority, self.arrival_time = priority, time.time() - SENT_BEFORE
        self.request_id, self.num_prompt_tokens, self.max_tokens = request_id, prompt, max_tokens
        self.num_output_tokens = self.num_computed_tokens = 0
        self.num_output_placeholders = self.num_in_flight = self.num_stale_output_tokens = 0
        self.drop_stale_output = self.prefilled = False
        self.spec_token_ids: list[int] = []
        self.status = RequestStatus.WAITING
        self.block_hashes: list[bytes] = []
        self.family = family

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_output_tokens

    def hash_blocks(self, block_size: int) -> None:
        """Blocks of one family are equal from the first on, as those of prompts with one beginning are."""
        name = self.family if self.family >= 0 else self.request_id
        for i in range(self.num_tokens // block_size):
            self.block_hashes.append(hashlib.sha256(f"{name} {i}".encode()).digest())
