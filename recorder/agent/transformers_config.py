"""The configuration of a continuous batching processor of transformers, and the fields of its requests."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from array import array
from typing import Any, Callable

from .writer import KeyframeRow

PACKAGE = "transformers.generation.continuous_batching."

TEXTS = {"scheduler_type"}
"""The only texts of the configuration that are recorded: no path or name of a model is among them."""

LIMITS = ("max_batch_tokens", "max_tokens_read", "num_pages", "read_cache_limit", "max_decode_fast_path_length",
          "max_blocks_per_request", "num_sectors", "bytes_per_sector", "tokens_per_sector")  # fmt: skip
"""Sizes that a `PagedAttentionCache` derives, by the names of its versions."""


def describe(processor: Any, num_blocks: int) -> dict[str, Any]:
    """The engine's row (columns of `recorder.schema.ENGINE`) from a `ContinuousBatchProcessor` (continuous_api.py)."""
    cache, scheduler = processor.cache, processor.scheduler
    helper = getattr(processor, "distributed_helper", None)
    most = getattr(processor, "max_batch_tokens", None) or getattr(cache, "max_batch_tokens", None)
    return {
        "name": "transformers",
        "version": getattr(sys.modules.get("transformers"), "__version__", None),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "role": "mixed",
        "dp_rank": getattr(helper, "dp_rank", None),
        "max_num_batched_tokens": most,
        "max_profiled_tokens": most,
        "num_max_dispatch_tokens_per_rank": None,
        "max_num_seqs": getattr(scheduler, "max_requests_per_batch", None),
        "num_speculative_tokens": 0,
        "spec_method": None,
        "block_size": page_size(processor),
        "num_blocks": num_blocks,
        "max_model_len": getattr(getattr(processor, "config", None), "max_position_embeddings", None),
        "chunked_prefill": True,
        "prefix_caching": bool(getattr(cache, "use_prefix_sharing", False)),
        "config": scheduling(processor),
        "env": {},
    }


def page_size(processor: Any) -> int | None:
    """Tokens of a KV block."""
    config = getattr(processor, "cb_config", None)
    for owner, name in ((processor.cache, "block_size"), (config, "page_size"), (config, "block_size")):
        size = getattr(owner, name, None)
        if isinstance(size, int):
            return size
    return None


def scheduling(processor: Any) -> dict[str, Any]:
    """The configuration of the scheduler and its cache, as JSON under transformers' own names."""
    cache, scheduler = processor.cache, processor.scheduler
    config = getattr(processor, "cb_config", None)
    managers = managers_of(cache)
    return {
        "continuous_batching_config": {
            name: value for name, value in getattr(config, "__dict__", {}).items() if _is_plain(name, value)
        },
        "scheduler_cls": type(scheduler).__name__,
        "safety_margin": getattr(scheduler, "safety_margin", None),
        "max_requests_per_batch": getattr(scheduler, "max_requests_per_batch", None),
        "cache": {name: value for name in LIMITS if isinstance(value := getattr(cache, name, None), int)},
        "groups": [
            {
                "type": type(manager).__name__,
                "num_layers": len(getattr(manager, "layer_indices", ())) or None,
                "sliding_window": getattr(manager, "sliding_window", None),
                "blocks_per_sector": getattr(manager, "blocks_per_sector", None),
                "bytes_per_block": getattr(manager, "bytes_per_block", None),
            }
            for manager in managers
        ],
        "attention_mask_bytes": attention_mask_bytes(processor),
        "use_async_batching": bool(getattr(processor, "use_async_batching", False)),
        "offloads_to_cpu": cpu_pool_size(processor) > 0,
        "cpu_pool_size": cpu_pool_size(processor),
        "tp_size": getattr(getattr(processor, "distributed_helper", None), "tp_size", 1),
    }


def attention_mask_bytes(processor: Any) -> int:
    """Bytes of the masks that attention without flash kernels reads: allocated at the start, for a whole budget."""
    outputs = getattr(processor, "inputs_and_outputs", None)
    pairs = getattr(outputs, "io_pairs", None)
    total = 0
    for inputs in (outputs,) if pairs is None else [pair.device_io for pair in pairs]:
        masks = getattr(inputs, "attention_mask", None)
        for mask in masks.values() if isinstance(masks, dict) else ():
            total += int(mask.numel() * mask.element_size())
    return total


def cpu_pool_size(processor: Any) -> int:
    """Size of the pool to which requests are offloaded: in sectors, up to 5.17 in KV blocks. 0: there is no pool."""
    manager = getattr(processor, "offloading_manager", None)
    for name in ("_num_cpu_sectors", "_num_cpu_blocks"):
        size = getattr(manager, name, None)
        if size is not None:
            return int(size)
    return 0


def _is_plain(name: str, value: Any) -> bool:
    if isinstance(value, str):
        return name in TEXTS
    if isinstance(value, (list, tuple)):
        return all(isinstance(item, (bool, int, float)) for item in value)
    return value is None or isinstance(value, (bool, int, float))


def managers_of(cache: Any) -> list[Any]:
    """The managers that give out the KV blocks, one for each group of layers. Each has a `block_table` by request."""
    allocators = getattr(cache, "cache_allocators", None)
    if allocators is not None:
        return list(allocators.values())
    return list(getattr(cache, "group_cache_managers", ()))


def prompt_of(state: Any) -> int:
    """Tokens of the client's prompt. If a request was reset, its `initial_tokens` also hold what it had generated."""
    return int(getattr(state, "_true_initial_tokens", 0) or len(state.initial_tokens))


def outputs_of(state: Any) -> int:
    """Output tokens that a request has generated, those from before a reset included."""
    return len(state.initial_tokens) - prompt_of(state) + len(state.generated_tokens)


def max_tokens_of(state: Any) -> int:
    """Most output tokens that it may generate; -1: no limit."""
    most = state.max_new_tokens
    if most is None:
        return -1
    return int(min(most + len(state.initial_tokens) - prompt_of(state), (1 << 31) - 1))


def running_row(state: Any, computed: int, blocks: int, cached: int) -> KeyframeRow:
    """A running request. `computed`: tokens computed before its next step; a decode counts its sampled token too."""
    return KeyframeRow(
        state.request_id, prompt_of(state), max_tokens_of(state), computed, blocks, cached, outputs_of(state)
    )


def finish_reason(state: Any) -> str:
    """Why a request ended that nobody aborted."""
    ends = getattr(state, "_eos_token_ids", ())
    return "stop" if state.generated_tokens and state.generated_tokens[-1] in ends else "length"


def prompt_hashes(state: Any, size: int, hash_block: Callable[[Any, list[int]], int]) -> list[bytes]:
    """For each full block of the prompt, 8 bytes of hash over it and all before it. A trace gets them salted."""
    tokens, hashes = state.initial_tokens, []
    parent: int | None = None
    for end in range(size, prompt_of(state) + 1, size):
        parent = hash_block(parent, tokens[end - size : end])
        hashes.append(hash_bytes(parent))
    return hashes


def block_hash(processor: Any) -> Callable[[Any, list[int]], int]:
    """The function by which its prefix cache hashes a block: of the hash of the block before it (None: it is the first)
    and its tokens. So the hashes of prompts are comparable with those of cached blocks.
    """
    module = sys.modules.get(PACKAGE + "cache_allocators.cache_allocator")
    function: Any = getattr(module, "compute_block_hash", None)
    if function is not None:
        return function  # type: ignore[no-any-return]
    compute = getattr(getattr(processor.cache, "_block_manager", None), "compute_hash", None)
    if compute is None:
        return _own_hash
    return lambda parent, tokens: int(compute(parent, tokens, 0))


def _own_hash(parent: Any, tokens: list[int]) -> int:
    before = b"" if parent is None else hash_bytes(parent)
    digest = hashlib.blake2b(before + array("q", tokens).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def hash_bytes(value: int) -> bytes:
    """8 bytes of a block's hash, which may be negative."""
    return (value & (1 << 64) - 1).to_bytes(8, "little")


def processor_of(manager: Any) -> Any:
    """The batch processor of a manager whose loop runs; None for any other object."""
    processor = getattr(manager, "__dict__", {}).get("batch_processor")
    return processor if type(processor).__module__.startswith(PACKAGE) else None


def drives(processor: Any) -> bool:
    """Whether it drives its tensor-parallel group: followers have no queue of requests."""
    return getattr(processor, "input_queue", None) is not None
