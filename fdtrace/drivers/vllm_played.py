"""The played worker of `vllm_driver.py`, which imports it from its own directory: what it knows of each request."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fdtrace.drivers.driver_protocol import Message

STOP = 2
"""The token that ends a request before its `max_tokens`. Tokens of prompts and outputs are larger numbers."""
DRAFT = 3


class PlayedVllmRequest:
    """What the played worker knows of a request: its tokens, its future drafts and acceptances, its progress."""

    def __init__(self, spec: Message, block_size: int, most_drafts: int) -> None:
        self.prompt, self.output, self.max_tokens = spec["prompt"], spec["output"], spec["max_tokens"]
        self.accepts, self.drafts, self.restarts = spec["accepts"], spec["drafts"], spec["restarts"]
        self._contents, self._block_size, self._most_drafts = spec["contents"], block_size, most_drafts
        self.emitted = self.forwards = 0
        self.prefills = True
        """Whether it is in its prefill, which lasts until the chunk that ends with its last token."""

    def token(self, position: int) -> int:
        """The token at a position of the whole sequence."""
        if position == self.prompt + self.output - 1 and self.output < self.max_tokens:
            return STOP
        return int(self._contents[min(position // self._block_size, len(self._contents) - 1)])

    def tokens(self, first: int, count: int) -> list[int]:
        """`count` tokens from position `first` on."""
        return [self.token(position) for position in range(first, first + count)]

    def emit(self, count: int) -> list[int]:
        """Its next tokens."""
        tokens = self.tokens(self.prompt + self.emitted, count)
        self.emitted += count
        return tokens

    def accepted(self, scheduled: int) -> int:
        """Drafts that its next decode forward accepts. After the last number of the list, that number is repeated."""
        return min(self._current(self.accepts, 0), scheduled)

    def proposed(self) -> int:
        """Drafts that its next decode forward is to verify. After the last number of the list, that number is repeated.

        If it was preempted before that forward, the number is not recorded. The most possible is taken: so it needs as
        many blocks as it can have needed.
        """
        if self.forwards in self.restarts:
            self.restarts.remove(self.forwards)
            return self._most_drafts
        drafts = self._current(self.drafts, self._most_drafts)
        return self._most_drafts if drafts < 0 else drafts

    def _current(self, values: list[int], default: int) -> int:
        return int(values[min(self.forwards, len(values) - 1)]) if values else default
