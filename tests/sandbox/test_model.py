"""The transformer over the paged cache: blocks, chunking and the other requests of a batch change no token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fdtrace.sandbox.batch import GROUP_KEYS, Batch, BatchRow
from fdtrace.sandbox.engine_config import EngineConfig
from fdtrace.sandbox.kv_cache import PagedKVCache
from fdtrace.sandbox.model import Transformer
from fdtrace.sandbox.ngram import count_accepted, draft

pytestmark = pytest.mark.xdist_group("paddle")
Greedy = Callable[[Any, int], list[int]]


@pytest.fixture
def parts(paddle: Any, config: EngineConfig) -> tuple[Transformer, PagedKVCache]:
    return Transformer(paddle, config), PagedKVCache(paddle, config)


def prompt(config: EngineConfig, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.vocab_size, length, dtype=np.int32)


def test_cache_is_one_tensor_in_blocks(paddle: Any, config: EngineConfig) -> None:
    cache = PagedKVCache(paddle, config)
    assert list(cache.data.shape) == [config.num_layers, 2, 96, 8, config.num_heads, config.head_dim]
    width = config.num_heads * config.head_dim
    batch = Batch.pack([BatchRow(np.zeros(3, dtype=np.int32), 7, [5, 2], num_logits=1)], config.block_size)
    keys = paddle.arange(3 * width, dtype="float32").reshape([3, width])
    cache.write(1, paddle.to_tensor(batch.where), keys, keys + 0.5)
    stored = cache.data.numpy()
    assert (stored[1, 0, 5, 7].reshape(-1) == keys[0].numpy()).all()  # position 7 ends block 5
    assert (stored[1, 0, 2, :2].reshape(2, -1) == keys[1:].numpy()).all()
    assert (stored[1, 1, 2, 1].reshape(-1) == keys[2].numpy() + 0.5).all()
    assert np.count_nonzero(stored) == 6 * width - 1
    read_keys, _ = cache.read(1, paddle.to_tensor([5, 2]), 1)
    assert (read_keys[0, 7:10].numpy().reshape(3, -1) == keys.numpy()).all()


def test_block_table_too_short_is_refused(config: EngineConfig) -> None:
    with pytest.raises(IndexError):
        Batch.pack([BatchRow(np.zeros(4, dtype=np.int32), 6, [3], num_logits=1)], config.block_size)


@pytest.mark.parametrize("chunks", [[40], [1, 39], [13, 13, 14], [8, 8, 8, 16]])
def test_scattered_blocks_and_chunks_change_no_token(
    parts: tuple[Transformer, PagedKVCache], config: EngineConfig, greedy: Greedy, chunks: list[int]
) -> None:
    model, cache = parts
    tokens, table = prompt(config, 40), [77, 3, 50, 11, 90, 0]
    start = 0
    for length in chunks:
        row = BatchRow(tokens[start : start + length], start, table, num_logits=1)
        chosen = model.forward(Batch.pack([row], config.block_size), cache)
        start += length
    made = [int(chosen[0])]
    while len(made) < 6:
        row = BatchRow(np.array(made[-1:], dtype=np.int32), 39 + len(made), table, num_logits=1)
        made.append(int(model.forward(Batch.pack([row], config.block_size), cache)[0]))
    assert made == greedy(tokens, 6)


def test_company_changes_no_token(
    parts: tuple[Transformer, PagedKVCache], config: EngineConfig, greedy: Greedy
) -> None:
    """Rows of unequal history and length in one forward, next to blocks that hold something else."""
    model, cache = parts
    prompts = [prompt(config, length, seed=length) for length in (5, 30, 17, 17)]
    tables = [[9], [20, 4, 33, 8], [1, 2, 3], [60, 61, 62]]
    rows = [BatchRow(p, 0, t, num_logits=1) for p, t in zip(prompts, tables, strict=True)]
    chosen = model.forward(Batch.pack(rows, config.block_size), cache)
    assert [int(token) for token in chosen] == [greedy(p, 1)[0] for p in prompts]


def test_speculation_equals_greedy(
    parts: tuple[Transformer, PagedKVCache], config: EngineConfig, greedy: Greedy
) -> None:
    """Rejected drafts leave keys behind in the cache: the next forward must overwrite what it reads."""
    model, cache = parts
    tokens = prompt(config, 21, seed=3).tolist()
    table = list(range(40, 60))
    first = BatchRow(np.array(tokens, dtype=np.int32), 0, table, num_logits=1)
    tokens.append(int(model.forward(Batch.pack([first], config.block_size), cache)[0]))
    accepted = 0
    while len(tokens) < 90:
        drafts = draft(np.array(tokens, dtype=np.int32), 4)
        run = np.concatenate([np.array(tokens[-1:], dtype=np.int32), drafts])
        row = BatchRow(run, len(tokens) - 1, table, num_logits=5)
        chosen = model.forward(Batch.pack([row], config.block_size), cache)
        count = count_accepted(drafts, chosen)
        accepted += count
        tokens += chosen[: count + 1].tolist()
    assert tokens[21:] == greedy(tokens[:21], len(tokens) - 21)
    assert accepted > 0


def test_groups_of_equal_length(config: EngineConfig) -> None:
    rows = [BatchRow(np.zeros(n, dtype=np.int32), 0, range(40), num_logits=1) for n in (5, 5, 5, 70, 1)]
    batch = Batch.pack(rows, config.block_size)
    shapes = [(group.first, group.batch, group.length) for group in batch.groups]
    assert shapes == [(0, 3, 5), (15, 2, 32), (79, 1, 6), (85, 1, 1)]
    assert batch.logits.tolist() == [4, 9, 14, 84, 85]
    assert batch.groups[1].block_tables.tolist() == [[0, 1, 2, 3, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert batch.groups[2].positions.tolist() == [list(range(64, 70))]


def test_groups_are_bounded(config: EngineConfig) -> None:
    table = range(GROUP_KEYS // 2 // config.block_size)
    rows = [BatchRow(np.zeros(2, dtype=np.int32), GROUP_KEYS // 2 - 2, table, num_logits=1) for _ in range(5)]
    assert [group.batch for group in Batch.pack(rows, config.block_size).groups] == [2, 2, 1]
