"""A small decoder-only transformer with seeded random weights, over the paged KV cache.

Pre-norm layers of rotary multi-head attention and a gated feed-forward, an untied output head. Nothing is
trained: the text means nothing, but every token depends on those before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.sandbox.batch import Batch, Group
from fdtrace.sandbox.engine_config import EngineConfig
from fdtrace.sandbox.kv_cache import PagedKVCache

ATTENTION_GAIN = 0.15
"""How strongly a layer's attention is added. Random attention scatters the text, none leaves it a function of
the last token alone; in between, greedy text falls into phrases that it repeats and leaves again."""
EPSILON = 1e-6
ROPE_BASE = 10_000.0


@dataclass(frozen=True)
class Layer:
    """Weights of one layer: [hidden, 3 * width], [width, hidden], [hidden, 2 * ffn], [ffn, hidden]."""

    qkv: Any
    out: Any
    gate_up: Any
    down: Any


@dataclass(frozen=True)
class _Forward:
    """What all layers of one forward share."""

    cache: PagedKVCache
    where: Any
    rotation: tuple[Any, Any]
    groups: list[tuple[Group, Any, Any]]


class Transformer:
    """Next tokens for a `Batch`; keys and values go to and come from the cache."""

    def __init__(self, paddle: Any, config: EngineConfig) -> None:
        self._paddle = paddle
        self._config = config
        self._hidden = config.num_heads * config.head_dim
        random = np.random.default_rng([config.seed, 1])
        self._embedding = self._weight(random, config.vocab_size, self._hidden, scale=1.0)
        self._layers = [self._layer(random) for _ in range(config.num_layers)]
        self._head = self._weight(random, self._hidden, config.vocab_size)
        self._cos, self._sin = self._rotations()
        self._scale = config.head_dim**-0.5

    def _weight(
        self, random: np.random.Generator, rows: int, columns: int, scale: float | None = None
    ) -> Any:
        scale = rows**-0.5 if scale is None else scale
        return self._paddle.to_tensor(
            random.standard_normal((rows, columns), dtype=np.float32) * np.float32(scale)
        )

    def _layer(self, random: np.random.Generator) -> Layer:
        hidden, ffn = self._hidden, self._config.ffn_size
        return Layer(
            qkv=self._weight(random, hidden, 3 * hidden),
            out=self._weight(random, hidden, hidden, scale=ATTENTION_GAIN * hidden**-0.5),
            gate_up=self._weight(random, hidden, 2 * ffn),
            down=self._weight(random, ffn, hidden),
        )

    def _rotations(self) -> tuple[Any, Any]:
        """Cosines and sines, float [max_model_len + drafts, 1, head_dim / 2]."""
        half = self._config.head_dim // 2
        positions = np.arange(self._config.max_model_len + self._config.num_drafts + 1)
        angles = positions[:, None, None] * ROPE_BASE ** (-np.arange(half) / half)
        to_tensor = self._paddle.to_tensor
        return to_tensor(np.cos(angles).astype(np.float32)), to_tensor(np.sin(angles).astype(np.float32))

    def forward(self, batch: Batch, cache: PagedKVCache) -> NDArray[np.int32]:
        """The argmax after each of `batch.logits`, int32; writes the batch's keys and values."""
        paddle = self._paddle
        positions = paddle.to_tensor(batch.positions)
        rotation = paddle.gather(self._cos, positions), paddle.gather(self._sin, positions)
        groups = [(group, *self._group_tensors(group)) for group in batch.groups]
        forward = _Forward(cache, paddle.to_tensor(batch.where), rotation, groups)
        x = paddle.gather(self._embedding, paddle.to_tensor(batch.tokens))
        for i, layer in enumerate(self._layers):
            x = x + self._attention(i, layer, self._norm(x), forward)
            x = x + self._feed_forward(layer, self._norm(x))
        if not len(batch.logits):
            return np.zeros(0, dtype=np.int32)
        wanted = self._norm(paddle.gather(x, paddle.to_tensor(batch.logits)))
        chosen = paddle.argmax(paddle.matmul(wanted, self._head), axis=-1)
        result: NDArray[np.int32] = chosen.numpy().astype(np.int32)
        return result

    def _norm(self, x: Any) -> Any:
        return x * self._paddle.rsqrt(self._paddle.mean(x * x, axis=-1, keepdim=True) + EPSILON)

    def _feed_forward(self, layer: Layer, x: Any) -> Any:
        gate, up = self._paddle.chunk(self._paddle.matmul(x, layer.gate_up), 2, axis=-1)
        return self._paddle.matmul(self._paddle.nn.functional.silu(gate) * up, layer.down)

    def _rotate(self, x: Any, rotation: tuple[Any, Any]) -> Any:
        """Turn pairs of x, float [num_tokens, heads, head_dim], by their positions' angles."""
        cos, sin = rotation
        a, b = self._paddle.chunk(x, 2, axis=-1)
        return self._paddle.concat([a * cos - b * sin, a * sin + b * cos], axis=-1)

    def _group_tensors(self, group: Group) -> tuple[Any, Any]:
        """The group's block tables, flat, and its causal mask, float [batch, 1, length, keys]."""
        keys = np.arange(group.block_tables.shape[1] * self._config.block_size)
        hidden = keys[None, None, :] > group.positions[:, :, None]
        mask = np.where(hidden, np.float32(-1e9), np.float32(0))[:, None]
        return self._paddle.to_tensor(group.block_tables.reshape(-1)), self._paddle.to_tensor(mask)

    def _attention(self, index: int, layer: Layer, x: Any, forward: _Forward) -> Any:
        shape = [-1, self._config.num_heads, self._config.head_dim]
        q, k, v = self._paddle.chunk(self._paddle.matmul(x, layer.qkv), 3, axis=-1)
        q = self._rotate(q.reshape(shape), forward.rotation)
        k = self._rotate(k.reshape(shape), forward.rotation)
        forward.cache.write(index, forward.where, k.reshape([-1, self._hidden]), v)
        parts = []
        for group, tables, mask in forward.groups:
            keys, values = forward.cache.read(index, tables, group.batch)
            parts.append(self._attend(q[group.first : group.end], keys, values, mask))
        return self._paddle.matmul(self._paddle.concat(parts, axis=0), layer.out)

    def _attend(self, queries: Any, keys: Any, values: Any, mask: Any) -> Any:
        """Attention of queries, float [batch * length, heads, head_dim], over their sequences' blocks."""
        paddle = self._paddle
        batch, length = mask.shape[0], mask.shape[2]
        queries = queries.reshape([batch, length, *keys.shape[2:]]).transpose([0, 2, 1, 3])
        scores = paddle.matmul(queries * self._scale, keys.transpose([0, 2, 3, 1]))
        # On a CPU Paddle adds equal shapes 40 times faster than it broadcasts, and copies this transposition
        # of keys and values 10 times faster than [0, 2, 1, 3].
        weights = paddle.nn.functional.softmax(scores + mask.expand_as(scores), axis=-1)
        mixed = paddle.matmul(weights, values.transpose([0, 2, 3, 1]), transpose_y=True)
        return mixed.transpose([0, 2, 1, 3]).reshape([-1, self._hidden])
