"""Replacements for the tensors and the model of transformers' continuous batching.

`transformers_driver.py` imports it from its own directory.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdtrace.drivers.driver_protocol import Message

STOP = 2
"""The token that ends a request before its `max_tokens`. Tokens of prompts and outputs are larger numbers."""
PLACEHOLDER = -1
"""`TMP_TOKEN_ID` of transformers' requests.py."""


class PlayedSequence:
    """What the played model knows of a request: its tokens, how many it has emitted, whether it is in its prefill."""

    def __init__(self, spec: Message, block_size: int) -> None:
        self.prompt, self.output, self.max_tokens = spec["prompt"], spec["output"], spec["max_tokens"]
        self._contents, self._block_size = spec["contents"], block_size
        self.emitted = 0
        self.prefills: bool | None = None
        """Whether its chunks belong to a prefill; None: it is not in the batch."""

    def token(self, position: int) -> int:
        """The token at a position of the whole sequence."""
        if position == self.prompt + self.output - 1 and self.output < self.max_tokens:
            return STOP
        return int(self._contents[min(position // self._block_size, len(self._contents) - 1)])

    def tokens(self, count: int) -> list[int]:
        """The first tokens of the whole sequence."""
        return [self.token(position) for position in range(count)]


class PlayedOutputs:
    """Replaces `ContinuousBatchingIOs`: holds the batches in flight, and plays their tokens."""

    compute_stream = None

    def __init__(self, playing: dict[str, PlayedSequence]) -> None:
        self.playing = playing
        self.in_flight: deque[list[Any]] = deque()
        self.rows: list[list[Any]] = []

    def prepare_batch_tensors(self, requests_in_batch: list[Any], *_: Any, **__: Any) -> None:
        """Do to the requests of a batch what input_outputs.py does, without the tensors; and add a row for each."""
        self.rows = []
        for future in requests_in_batch:
            state, count = future.state, future.query_length
            played = self.playing[state.request_id]
            if played.prefills is None:
                played.prefills = not (state.generated_tokens and count == 1 and future.has_new_token)
            decodes = not played.prefills
            emits = int(future.has_new_token and played.emitted < played.output)
            self.rows.append([state.request_id, decodes, count, state.position_offset + decodes, emits])
            played.emitted += emits
            state.position_offset += count
            if future.has_new_token:
                played.prefills = False
                state.tokens_to_process = [PLACEHOLDER]
        self.in_flight.append(list(requests_in_batch))

    def prepare_batch_update(self) -> tuple[list[Any], list[int], None]:
        """The oldest batch, and a token for each of its requests that generates one."""
        futures = self.in_flight.popleft()
        tokens = []
        for future in futures:
            if future.has_new_token:
                state = future.state
                tokens.append(
                    self.playing[state.request_id].token(
                        len(state.initial_tokens) + len(state.generated_tokens)
                    )
                )
        return futures, tokens, None


class SilentRouter:
    """Replaces `OutputRouter`: nobody waits for results."""

    def deliver_batch(self, outputs: list[Any]) -> None:
        """Nothing to do: the results are in the requests."""

    def deliver(self, output: Any) -> None:
        """As `deliver_batch`."""

    def fail_and_deliver(self, state: Any, error: Exception) -> None:
        """A request that cannot be served ends the replay."""
        raise error
