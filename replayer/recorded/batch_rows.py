"""The requests of every step as arrays, and the features of a batch that its duration depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FEATURES = ("prefill_tokens", "prefills", "decode_tokens", "kv_tokens", "prefill_attention")
"""What a step's duration may depend on, in this order: prefill tokens, requests with a prefill, decode tokens, KV
tokens that are read (computed before), and for the chunks the sum of tokens times the tokens that each of them reads.
"""


@dataclass(frozen=True, eq=False)
class BatchRowColumns:
    """A row a request and step, ascending by step; arrays of one entry a row."""

    step: NDArray[np.int64]
    """The entry of the step in its history, from 0."""
    request: NDArray[np.int64]
    """The entry of the request in its recording or workload."""
    prefill: NDArray[np.bool_]
    num_tokens: NDArray[np.int64]
    num_computed_tokens: NDArray[np.int64]
    num_accepted_tokens: NDArray[np.int64]

    def features(self, num_steps: int) -> NDArray[np.float64]:
        """`FEATURES` of each step, a row a step."""
        tokens, computed = self.num_tokens.astype(np.float64), self.num_computed_tokens.astype(np.float64)
        prefill = self.prefill.astype(np.float64)
        parts = (
            tokens * prefill,
            prefill,
            tokens * (1 - prefill),
            computed,
            prefill * tokens * (computed + tokens / 2),
        )
        return np.stack([np.bincount(self.step, part, num_steps) for part in parts], axis=1)


def features_of(rows: Sequence[Any]) -> tuple[float, ...]:
    """`FEATURES` of one step, from its `StepRow`s."""
    prefill = prefills = decode = kv = attention = 0.0
    for row in rows:
        tokens, computed = row.num_tokens, row.num_computed_tokens
        kv += computed
        if row.kind == "prefill":
            prefill += tokens
            prefills += 1
            attention += tokens * (computed + tokens / 2)
        else:
            decode += tokens
    return prefill, prefills, decode, kv, attention
