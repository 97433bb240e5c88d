"""A seeded load of repeating text. It arrives by step, never by the clock: two runs are equal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.errors import UsageError
from fdtrace.sandbox.engine_config import EngineConfig
from fdtrace.sandbox.sandbox_request import SandboxRequest

NUM_PHRASES = 24
PHRASE_TOKENS = (4, 12)


@dataclass(frozen=True)
class LoadShape:
    """Lengths are drawn evenly between their two ends, both included; tokens unless named otherwise."""

    num_requests: int | None = None
    """Requests in all; None: no end."""
    prompt: tuple[int, int] = (24, 320)
    output: tuple[int, int] = (16, 128)
    arrival_gap: float = 1.5
    """Mean steps between two arrivals (geometric); 0: none arrive but those that `backlog` asks for."""
    backlog: int = 0
    """Requests kept waiting: as many arrive as the waiting queue lacks."""
    max_waiting: int = 64
    """Requests that wait at most; further arrivals come later, so that an overloaded engine does not grow."""
    abort_share: float = 0.0
    """Share of the requests that their client gives up, 0 to 1."""
    abort_after: tuple[int, int] = (4, 40)
    """Steps from arrival to that."""

    def check(self, config: EngineConfig) -> None:
        """Raise `UsageError` where a request could never fit `config`, or where none ever comes."""
        for name, (low, high) in (("prompt", self.prompt), ("output", self.output)):
            if not 1 <= low <= high:
                raise UsageError(f"{name} lengths {low} to {high} make no range", hint="LOW:HIGH, 1 or more")
        if not 0 <= self.abort_after[0] <= self.abort_after[1]:
            raise UsageError(
                f"abort_after {self.abort_after[0]} to {self.abort_after[1]} is no range",
                hint="LOW:HIGH, 0 or more",
            )
        if self.num_requests is not None and self.num_requests < 1:
            raise UsageError(f"--requests is {self.num_requests}", hint="1 or more")
        longest = self.prompt[1] + self.output[1]
        if longest > config.max_model_len:
            raise UsageError(
                f"a request may grow to {longest} tokens, over max_model_len {config.max_model_len}",
                hint="shorter --prompt or --output, or a larger --max-model-len",
            )
        if self.arrival_gap < 0 or self.backlog < 0 or not 0 <= self.abort_share <= 1:
            raise UsageError("arrival gap and backlog are 0 or more, the share of aborts is 0 to 1")
        if self.max_waiting < 1 or self.backlog > self.max_waiting:
            raise UsageError(
                "so many may not wait", hint="a --max-waiting of 1 or more, and no smaller than --backlog"
            )
        if not self.arrival_gap and not self.backlog:
            raise UsageError("no request would ever arrive", hint="an --arrival-gap or a --backlog")


class Load:
    """What arrives, and what is given up, before the scheduling of each step."""

    def __init__(self, shape: LoadShape, config: EngineConfig) -> None:
        shape.check(config)
        self._shape = shape
        self._random = np.random.default_rng([config.seed, 2])
        low, high = PHRASE_TOKENS
        self._phrases = [
            self._random.integers(0, config.vocab_size, self._random.integers(low, high + 1), dtype=np.int32)
            for _ in range(NUM_PHRASES)
        ]
        self._made = 0
        self._next_arrival = 0 if shape.arrival_gap else None
        self._aborts: dict[int, list[SandboxRequest]] = {}

    @property
    def exhausted(self) -> bool:
        """Whether no request will come any more."""
        return self._shape.num_requests is not None and self._made >= self._shape.num_requests

    def next_change(self, num_waiting: int) -> int | None:
        """The next step before which a request arrives or is given up, given how many wait; None: none is."""
        moments = list(self._aborts)
        if self._next_arrival is not None and not self.exhausted and num_waiting < self._shape.max_waiting:
            moments.append(self._next_arrival)
        return min(moments, default=None)

    def arrivals(self, step: int, num_waiting: int) -> list[SandboxRequest]:
        """The requests that arrive before `step`, given how many wait."""
        arrived: list[SandboxRequest] = []
        room = self._shape.max_waiting - num_waiting
        while self._next_arrival is not None and self._next_arrival <= step and len(arrived) < room:
            if self.exhausted:
                break
            arrived.append(self._make(step))
            self._next_arrival += int(self._random.geometric(1 / (1 + self._shape.arrival_gap))) - 1
        while num_waiting + len(arrived) < self._shape.backlog and not self.exhausted:
            arrived.append(self._make(step))
        return arrived

    def aborts(self, step: int) -> list[SandboxRequest]:
        """The requests whose clients give up before `step`; some may have finished already."""
        due = [at for at in self._aborts if at <= step]
        return [request for at in sorted(due) for request in self._aborts.pop(at)]

    def _make(self, step: int) -> SandboxRequest:
        shape, random = self._shape, self._random
        prompt = self._text(int(random.integers(shape.prompt[0], shape.prompt[1] + 1)))
        request = SandboxRequest.make(
            f"req-{self._made}", prompt, int(random.integers(shape.output[0], shape.output[1] + 1))
        )
        self._made += 1
        if random.random() < shape.abort_share:
            after = int(random.integers(shape.abort_after[0], shape.abort_after[1] + 1))
            self._aborts.setdefault(step + after, []).append(request)
        return request

    def _text(self, num_tokens: int) -> NDArray[np.int32]:
        """Phrases drawn again and again from the same few, cut at `num_tokens`."""
        parts: list[NDArray[np.int32]] = []
        while sum(len(part) for part in parts) < num_tokens:
            parts.append(self._phrases[int(self._random.integers(NUM_PHRASES))])
        return np.concatenate(parts)[:num_tokens]
