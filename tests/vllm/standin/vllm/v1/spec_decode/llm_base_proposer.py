"""A drafter that computes nothing: its first pass runs the batch and slots of its requests, padded to eights."""

from __future__ import annotations

from typing import Any


class SpecDecodeBaseProposer:
    def __init__(self, slots: int, max_num_tokens: int) -> None:
        self.slots = slots
        self.max_num_tokens = self.max_query_tokens = max_num_tokens

    def propose(self, num_tokens: int, num_requests: int) -> None:
        first = num_tokens + self.slots * num_requests
        self._determine_batch_execution_and_padding(first)
        self._determine_batch_execution_and_padding(num_requests)  # of the passes that follow

    def _determine_batch_execution_and_padding(
        self, num_tokens: int, use_cudagraphs: bool = True
    ) -> tuple[str, int, Any]:
        return "PIECEWISE", -(-num_tokens // 8) * 8, None
