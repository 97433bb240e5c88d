"""How a deployment of several ranks (engines of the same model) distributes its requests: at each arrival, by the state
of the ranks.

A router here sees the state of each rank as it is at the arrival. A real one sees it later: vLLM's frontend gets the
counts of its ranks every 100 ms, and adds what it has sent since.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.workload.workload import WorkRequest

RECORDED = "recorded"
"""The routing of the recording itself: each request goes to the rank that had it."""


class RankState(Protocol):
    """One rank at an arrival."""

    @property
    def num_running(self) -> int:
        """Requests that its scheduler has admitted, and that have not ended."""

    @property
    def num_waiting(self) -> int:
        """All its other requests."""

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens of all its requests so far."""

    @property
    def num_kv_blocks(self) -> int:
        """KV blocks in use after its last call, and those that the prompts of requests need that never ran."""

    @property
    def num_blocks(self) -> int:
        """KV blocks that it has."""

    @property
    def block_size(self) -> int:
        """Tokens of a KV block."""


class Router(Protocol):
    """Chooses the rank of each request, in order of arrival."""

    def choose(self, request: WorkRequest, ranks: Sequence[RankState]) -> int:
        """The entry in `ranks` of the rank that gets the request."""


def _least(ranks: Sequence[RankState], load: Callable[[RankState], float], first: int = 0) -> int:
    """The entry of the rank with the least load; among equal ones the first from entry `first` on."""
    entries = [(first + i) % len(ranks) for i in range(len(ranks))]
    return min(entries, key=lambda entry: load(ranks[entry]))


class RoundRobin:
    """To each rank in turn."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, request: WorkRequest, ranks: Sequence[RankState]) -> int:
        """The next rank."""
        self._next += 1
        return (self._next - 1) % len(ranks)


@dataclass
class LeastLoad:
    """To the rank with the least of something; equal ranks take turns."""

    load: Callable[[RankState], float]
    _first: int = 0

    def choose(self, request: WorkRequest, ranks: Sequence[RankState]) -> int:
        """The rank with the least load."""
        first, self._first = self._first, self._first + 1
        return _least(ranks, self.load, first % len(ranks))


def _requests(rank: RankState) -> float:
    return rank.num_running + rank.num_waiting


def _vllm_score(rank: RankState) -> float:
    """As in `DPLBAsyncMPClient.get_core_engine_for_request` of vLLM 0.32 (v1/engine/core_client.py). Its count of
    requests in flight equals waiting and running ones here, where no count is old.
    """
    pressure = max(0.0, rank.num_kv_blocks / max(1, rank.num_blocks) - 0.5)
    return rank.num_running + rank.num_waiting + rank.num_waiting * 6.0 * pressure


CACHE_THRESHOLD = 0.3
"""A prefix counts if it is at least this share of the prompt: the default of SGLang's router (`--cache-threshold`)."""
BALANCE_ABS, BALANCE_REL = 64, 1.5
"""Ranks are unbalanced if the fullest has so many requests more, and so many times as many, as the emptiest: the
defaults of SGLang's router (`--balance-abs-threshold`, `--balance-rel-threshold`).
"""


class PrefixAffinity:
    """To the rank that was sent the longest prefix of the prompt, as SGLang's router does (`cache_aware`).

    It goes by what it has sent, and does not see what a rank has evicted. If the prefix is short, or if the ranks are
    unbalanced, the rank with the fewest requests gets the request.
    """

    def __init__(self) -> None:
        self._sent: list[set[Hashable]] = []
        self._first = 0

    def choose(self, request: WorkRequest, ranks: Sequence[RankState]) -> int:
        """The rank with the longest prefix, unless it is too short."""
        while len(self._sent) < len(ranks):
            self._sent.append(set())
        key, size = request.block_key, ranks[0].block_size
        blocks = [] if key is None else [key(i) for i in range(request.num_prompt_tokens // size)]
        first, self._first = self._first, self._first + 1
        chosen = _least(ranks, _requests, first % len(ranks))
        found = [_num_leading(blocks, sent) for sent in self._sent]
        counts = [_requests(rank) for rank in ranks]
        unbalanced = max(counts) - min(counts) > BALANCE_ABS and max(counts) > BALANCE_REL * min(counts)
        if not unbalanced and blocks and max(found) * size >= CACHE_THRESHOLD * request.num_prompt_tokens:
            longest = [entry for entry, length in enumerate(found) if length == max(found)]
            chosen = min(longest, key=lambda entry: counts[entry])
        self._sent[chosen].update(blocks)
        return chosen


def _num_leading(blocks: Sequence[Hashable], sent: set[Hashable]) -> int:
    """How many blocks from the first on were sent. A block's key includes all blocks before it."""
    return next((i for i, block in enumerate(blocks) if block not in sent), len(blocks))


@dataclass
class AsRecorded:
    """To the rank that had the request in the recording."""

    rank_of: Mapping[str, int]

    def choose(self, request: WorkRequest, ranks: Sequence[RankState]) -> int:
        """The rank of the recording."""
        return self.rank_of[request.request_id]


@dataclass(frozen=True)
class RoutingRule:
    """A way of routing that can be named."""

    make: Callable[[], Router]
    description: str


ROUTINGS: Mapping[str, RoutingRule] = {
    "round_robin": RoutingRule(RoundRobin, "to each rank in turn"),
    "least_requests": RoutingRule(
        lambda: LeastLoad(_requests), "to the rank with the fewest requests, running and waiting"
    ),
    "least_tokens": RoutingRule(
        lambda: LeastLoad(lambda rank: rank.num_tokens),
        "to the rank whose requests have the fewest prompt and output tokens so far",
    ),
    "least_kv_blocks": RoutingRule(
        lambda: LeastLoad(lambda rank: rank.num_kv_blocks),
        "to the rank with the fewest KV blocks in use or needed by prompts that wait there",
    ),
    "prefix_affinity": RoutingRule(
        PrefixAffinity, "to the rank that was sent the longest prefix of the prompt, as SGLang's router"
    ),
    "vllm": RoutingRule(
        lambda: LeastLoad(_vllm_score),
        "as vLLM's internal load balancer: fewest requests, waiting ones more where KV blocks are scarce",
    ),
}
"""The routings by name, beside `recorded`."""


def router_of(name: str, rank_of: Mapping[str, int]) -> Router:
    """A new router of that name. `rank_of`: the recorded rank of each request, by its id. UsageError: there is none."""
    if name == RECORDED:
        return AsRecorded(rank_of)
    if name not in ROUTINGS:
        raise UsageError(f"there is no routing {name!r}", hint=f"one of {', '.join((RECORDED, *ROUTINGS))}")
    return ROUTINGS[name].make()
