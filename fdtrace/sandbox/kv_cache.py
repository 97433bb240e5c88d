"""The KV cache in blocks: one tensor, written and read through block tables."""

from __future__ import annotations

from typing import Any

from fdtrace.sandbox.engine_config import EngineConfig


class PagedKVCache:
    """`data`: float32 [num_layers, 2 (keys, values), num_blocks, block_size, num_heads, head_dim]."""

    def __init__(self, paddle: Any, config: EngineConfig) -> None:
        self._paddle = paddle
        self._entry = [config.num_heads, config.head_dim]
        self.data = paddle.zeros(
            [config.num_layers, 2, config.num_blocks, config.block_size, config.num_heads, config.head_dim]
        )
        width = config.num_heads * config.head_dim
        positions = config.num_blocks * config.block_size
        self._by_position = self._views(config.num_layers, [positions, width])
        self._by_block = self._views(config.num_layers, [config.num_blocks, config.block_size * width])

    def _views(self, num_layers: int, shape: list[int]) -> list[tuple[Any, Any]]:
        """Keys and values of each layer as views of `data` in `shape`: writing to one writes to all."""
        return [(self.data[i, 0].view(shape), self.data[i, 1].view(shape)) for i in range(num_layers)]

    def write(self, layer: int, where: Any, keys: Any, values: Any) -> None:
        """Put keys and values, float [num_tokens, heads * head_dim], at the flat positions `where`."""
        cached_keys, cached_values = self._by_position[layer]
        self._paddle.scatter_(cached_keys, where, keys)
        self._paddle.scatter_(cached_values, where, values)

    def read(self, layer: int, block_tables: Any, batch: int) -> tuple[Any, Any]:
        """Keys and values of `batch` sequences, float [batch, blocks * block_size, heads, head_dim].

        `block_tables` is int64 [batch * blocks], the sequences' tables padded to one length and laid end to
        end.
        """
        shape = [batch, -1, *self._entry]
        cached_keys, cached_values = self._by_block[layer]
        keys = self._paddle.gather(cached_keys, block_tables).reshape(shape)
        values = self._paddle.gather(cached_values, block_tables).reshape(shape)
        return keys, values
