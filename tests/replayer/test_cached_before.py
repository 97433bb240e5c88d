"""A model that begins with the prefix cache of another one goes on as that one does."""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator
from dataclasses import replace
from functools import partial

import pytest

from fdtrace.replayer import ORIGINAL, Scheduler, SchedulerConfig
from fdtrace.replayer.formulas import BUILTIN
from fdtrace.replayer.model.block_reserve import DecayingReserve
from fdtrace.replayer.model.events import (
    Arrived,
    Decision,
    DecodeTokenCounts,
    Freed,
    Left,
    Notification,
    OutputCached,
    Rescheduled,
    Resumed,
    Schedule,
)
from fdtrace.replayer.model.found_events import (
    CachedBlock,
    CacheLeaf,
    LeavingAtStart,
    PrefixCacheAtStart,
    ReserveAtStart,
)
from fdtrace.replayer.model.prefix_cache import Node, PrefixCache
from fdtrace.replayer.model.request import Status

CONFIG = SchedulerConfig(
    max_num_batched_tokens=512,
    max_num_seqs=8,
    num_blocks=40,
    max_model_len=2048,
    prefix_caching=True,
    output_caching=True,
)


def key_of(text: int, block: int) -> Hashable:
    """Prompts repeat exactly, and three of them share a prefix."""
    return (text % 3 if block < 2 else text, block)


class Traffic:
    """Requests for one or more schedulers alike: the same events, and what the first of them decides."""

    def __init__(self, scheduler: Scheduler, seed: int) -> None:
        self.schedulers, self.random, self.count = [scheduler], random.Random(seed), 0
        self.arrivals: dict[str, Arrived] = {}
        self.outputs: dict[str, int] = {}
        self.left: list[str] = []
        """Requests that left after the last call. They keep their blocks until after the next one."""

    @property
    def first(self) -> Scheduler:
        return self.schedulers[0]

    def apply(self, event: Notification) -> None:
        for scheduler in self.schedulers:
            scheduler.apply(event)

    def step(self) -> list[Decision]:
        """One call, and what follows it."""
        if self.first.num_waiting < 2:
            self.count += 1
            name = f"r{self.count}"
            prompt, text = self.random.choice((70, 128, 200, 300)), self.random.randrange(9)
            arrived = Arrived(name, prompt, 400, block_key=partial(key_of, text))
            self.arrivals[name], self.outputs[name] = arrived, self.random.choice((40, 100, 200))
            self.apply(arrived)
        decisions = [scheduler.apply(Schedule()) for scheduler in self.schedulers]
        for scheduler in self.schedulers:
            scheduler.check()
        for name in decisions[0].preempted:
            self.apply(Rescheduled(name))
        left, self.left = self.left, []
        for name in left:
            self.apply(Freed(name))
        for request in list(self.first._state.running):
            if request.computed >= request.need_prefill:
                self.decode(request.id)
        return decisions

    def decode(self, name: str) -> None:
        total = self.first.num_total_tokens_of(name) + self.random.randint(1, 20)
        self.apply(DecodeTokenCounts({name: total}))
        if total - self.arrivals[name].num_prompt_tokens >= self.outputs[name]:
            self.apply(OutputCached(name, total))
            self.apply(Left(name))
            self.left.append(name)


def nodes_of(pool: PrefixCache, leaves: list[Node]) -> dict[Node, int]:
    """All nodes, each after its parent: those in the tree, and those that it hides."""
    numbers: dict[Node, int] = {}

    def number(node: Node) -> None:
        if node.parent is not None and node not in numbers:
            number(node.parent)
            numbers[node] = len(numbers)

    def below(node: Node) -> Iterator[Node]:
        for child in node.children.values():
            yield child
            yield from below(child)

    for node in (*leaves, *pool._leaves, *below(pool.root)):
        number(node)
    return numbers


def beginning_of(scheduler: Scheduler, arrivals: dict[str, Arrived]) -> Iterator[Notification]:
    """The state of a scheduler, as a recording that begins now finds it."""
    state, pool = scheduler._state, scheduler._state.pool
    assert isinstance(pool, PrefixCache)
    numbers = nodes_of(pool, [request.leaf[0] for request in (*state.running, *state.leaving.values())])
    places = {node: place for place, node in enumerate(pool._leaves)}
    blocks = [
        CachedBlock(
            None if node.parent is pool.root else numbers[node.parent or pool.root],
            node.key,
            node.shared_count,
            node.used_at,
            node.cached,
            node.parent is not None and node.parent.children.get(node.key) is node,
            places.get(node),
        )
        for node in numbers
    ]
    for start in range(0, len(blocks), 7):  # in parts
        yield PrefixCacheAtStart(tuple(blocks[start : start + 7]), pool.num_free)
    reserve = scheduler._reserve
    assert isinstance(reserve, DecayingReserve)
    yield ReserveAtStart(reserve.exact, relaxed=reserve.relaxed)
    for request in state.running:
        leaf, num_tokens = request.leaf
        yield Resumed(
            arrivals[request.id],
            request.computed,
            request.num_blocks,
            state.total(request) - request.prompt,
            num_prefill_tokens=request.need_prefill,
            leaf=CacheLeaf(numbers.get(leaf), num_tokens, request.cached_blocks),
        )
    for request in state.leaving.values():
        leaf, num_tokens = request.leaf
        place = CacheLeaf(numbers.get(leaf), num_tokens, request.cached_blocks)
        yield LeavingAtStart(request.id, request.num_blocks, place)
    for request in state.waiting:
        if request.status is Status.WAITING:
            yield arrivals[request.id]
        else:
            emitted = state.total(request) - request.prompt
            yield replace(Resumed(arrivals[request.id], 0, 0, emitted), place="requeued")


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("after", [20, 60, 150])
def test_it_goes_on_as_the_one_before(seed: int, after: int) -> None:
    traffic = Traffic(Scheduler(CONFIG, BUILTIN[ORIGINAL.formula]), seed)
    for _ in range(after):
        traffic.step()
    while not traffic.first._state.leaving:
        traffic.step()
    later = Scheduler(CONFIG, BUILTIN[ORIGINAL.formula])
    for event in beginning_of(traffic.first, traffic.arrivals):
        later.apply(event)
    later.check()
    traffic.schedulers.append(later)
    pool, num_evicted = later._state.pool, 0
    assert isinstance(pool, PrefixCache)
    for _ in range(150):
        num_before = pool.num_nodes
        one, other = traffic.step()
        num_evicted += pool.num_nodes < num_before
        assert (one.chunks, one.extended, one.preempted, one.num_free_blocks) == (
            other.chunks, other.extended, other.preempted, other.num_free_blocks,
        )  # fmt: skip
    assert num_evicted


def test_without_prefix_caching_nothing_was_cached() -> None:
    scheduler = Scheduler(replace(CONFIG, prefix_caching=False), BUILTIN[ORIGINAL.formula])
    scheduler.apply(PrefixCacheAtStart((CachedBlock(None, "a", 0, 1, True, True, 0),), 3))
    assert scheduler.num_free_blocks == CONFIG.num_blocks


def test_a_hidden_block_is_not_found_by_requests() -> None:
    """What follows it is not found either."""
    scheduler = Scheduler(CONFIG, BUILTIN[ORIGINAL.formula])
    blocks = (
        CachedBlock(None, "one", 0, 1, True, True, 0),
        CachedBlock(None, "one", 0, 1, True, False, None),
        CachedBlock(1, "two", 0, 1, True, True, 1),
    )
    scheduler.apply(PrefixCacheAtStart(blocks, CONFIG.num_blocks - 3))
    scheduler.apply(Arrived("a", 200, 10, block_key=lambda block: ("one", "two", "three")[block]))
    assert scheduler.apply(Schedule()).chunks == [("a", 64, 200)]
    scheduler.check()
