"""The prefix cache as a recording finds it: what the agent reads, and what the trace keeps of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import duckdb
import pytest

from fdtrace.recorder import schema
from fdtrace.recorder.agent import fastdeploy_cache, fastdeploy_config, wire_order
from fdtrace.recorder.agent.fastdeploy_cache import PrefixCacheReader
from fdtrace.recorder.collector.order_frames import cached_blocks
from fdtrace.recorder.collector.prompt_hash_salt import salted
from fdtrace.recorder.collector.tables import create
from fdtrace.recorder.trace.notes import cache_notes

SIZE, SALT = 4, b"salt"


class Node:
    """Fields of FastDeploy's `BlockNode`; the lab's tests hold them to the real one."""

    def __init__(self, parent: Node | None, tokens: list[int], used: float = 0.0, sharing: int = 0) -> None:
        self.parent, self.input_ids, self.last_used_time, self.shared_count = parent, tokens, used, sharing
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.hash_value: str | None = None
        if parent is not None:
            self.hash_value = f"{parent.hash_value} {tokens[: self.depth * SIZE]}"
        self.children: dict[Any, Node] = {}
        self.has_in_gpu = True
        if parent is not None:
            parent.children[self.hash_value] = self


class Manager:
    """Fields of a manager with prefix caching, of an empty tree."""

    def __init__(self, *, mm: bool = False) -> None:
        cache = SimpleNamespace(enable_prefix_caching=True, block_size=SIZE)
        self.config = SimpleNamespace(cache_config=cache, model_config=SimpleNamespace(enable_mm=mm))
        self.root = Node(None, [])
        self.nodes: dict[int, Node] = {}
        self.cache_manager: Any = SimpleNamespace(
            radix_tree_root=self.root, node_map=self.nodes, gpu_lru_leaf_heap=[], req_to_radix_tree_info={},
            gpu_free_block_list=[7, 8],
        )  # fmt: skip

    def add(self, parent: Node, tokens: list[int], used: float = 0.0, sharing: int = 0) -> Node:
        node = Node(parent, tokens, used, sharing)
        self.nodes[len(self.nodes)] = node
        return node


Frame = tuple[str, Any, int, list[int]]


def written(manager: Manager) -> list[Frame]:
    frames: list[Frame] = []
    PrefixCacheReader(manager).write(
        lambda place, request, value, *more: frames.append((place, request, value, list(more)))
    )
    return frames


def blocks_of(manager: Manager) -> list[list[Any]]:
    words: list[int] = []
    for place, request, value, more in written(manager):
        assert (place, request, value) == ("cached", None, 2)
        words += more
    return cached_blocks(words, SALT)


def hashes(manager: Manager, tokens: list[int]) -> list[int]:
    """Those of a request with this prompt, as the trace keeps them."""
    request = SimpleNamespace(prompt_token_ids=tokens)
    return salted(b"".join(fastdeploy_config.block_hashes(manager.config, request)), SALT)


def test_blocks_have_the_hashes_of_the_prompts_that_find_them() -> None:
    manager = Manager()
    one, other = [1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 50, 60, 70, 80]
    first = manager.add(manager.root, one, used=3.0, sharing=1)
    second = manager.add(first, one, used=3.0, sharing=1)
    third = manager.add(first, other, used=1.5)
    manager.cache_manager.gpu_lru_leaf_heap.append(third)
    manager.cache_manager.req_to_radix_tree_info["a"] = [second, 8]
    of_one, of_other = hashes(manager, one), hashes(manager, other)
    assert of_one[0] == of_other[0]
    assert blocks_of(manager) == [
        [None, of_one[0], 1, 2, True, True, None],
        [0, of_one[1], 1, 2, True, True, None],
        [0, of_other[1], 0, 1, True, True, 0],
    ]
    cache = PrefixCacheReader(manager)
    assert cache.leaf_of(SimpleNamespace(request_id="a", num_cached_blocks=2)) == (1, 8, 2)
    assert cache.leaf_of(SimpleNamespace(request_id="not there", num_cached_blocks=0)) == ()


def test_a_block_that_is_hidden_or_whose_parent_is_gone_is_there_too() -> None:
    manager, tokens = Manager(), [1, 2, 3, 4, 5, 6, 7, 8]
    hidden = manager.add(manager.root, tokens)
    below = manager.add(hidden, tokens)
    hider = manager.add(manager.root, tokens)
    del manager.nodes[0]  # evicted
    hidden.has_in_gpu = False
    manager.cache_manager.gpu_lru_leaf_heap += [hider, below]
    of_prompt = hashes(manager, tokens)
    assert [[block[0], block[1], *block[4:]] for block in blocks_of(manager)] == [
        [None, of_prompt[0], False, False, None],
        [0, of_prompt[1], True, True, 1],
        [None, of_prompt[0], True, True, 0],
    ]


def test_a_block_below_itself_has_the_same_content() -> None:
    """A request that computes its last cached block again in two chunks adds it a second time."""
    manager, tokens = Manager(), [1, 2, 3, 4, 5, 6, 7, 8]
    first = manager.add(manager.root, tokens)
    second = manager.add(first, tokens)
    again = manager.add(second, tokens)
    after = manager.add(again, [*tokens, 9, 10, 11, 12])
    assert (again.depth, after.depth) == (3, 4)
    one, two, three = hashes(manager, [*tokens, 9, 10, 11, 12])
    assert [block[1] for block in blocks_of(manager)] == [one, two, two, three]


def test_a_root_leaf_and_an_empty_cache() -> None:
    manager = Manager()
    assert written(manager) == []
    assert PrefixCacheReader(manager).leaf_of(SimpleNamespace(request_id="a")) == ()
    manager.add(manager.root, [1, 2, 3, 4])
    manager.cache_manager.req_to_radix_tree_info["a"] = [manager.root, 0]
    leaf = PrefixCacheReader(manager).leaf_of(SimpleNamespace(request_id="a", num_cached_blocks=0))
    assert leaf == (wire_order.NOBODY, 0, 0)


def test_what_does_not_fit_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = Manager()
    node = manager.root
    for number in range(5):
        node = manager.add(node, list(range(4 * (number + 1))))
    monkeypatch.setattr(fastdeploy_cache, "FRAME_BLOCKS", 2)
    assert [len(more) // len(wire_order.CACHED) for *_, more in written(manager)] == [2, 2, 1]
    monkeypatch.setattr(fastdeploy_cache, "MOST_BLOCKS", 4)
    assert written(manager) == [("cache left out", None, 5, [])]
    assert PrefixCacheReader(manager).leaf_of(SimpleNamespace(request_id="a", num_cached_blocks=0)) == ()


def test_a_note_says_that_the_cache_is_left_out() -> None:
    details = ['{"place": "cache left out", "num_blocks": 20000}', '{"place": "cached"}', "no JSON"]
    with duckdb.connect() as db:
        create(db, "event", schema.EVENT)
        for engine_id, detail in enumerate(details):
            db.execute(
                "INSERT INTO event (engine_id, kind, detail) VALUES ($1, 'found', $2)", [engine_id, detail]
            )
        (note,) = cache_notes(db)
    assert note.startswith(
        "engine 0: the prefix cache held 20000 blocks when this began, and they are not recorded"
    )


def test_blocks_with_images_are_left_out() -> None:
    manager = Manager(mm=True)
    manager.add(manager.root, [1, 2, 3, 4])
    assert written(manager) == [("cache left out", None, 1, [])]
