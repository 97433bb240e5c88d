"""Reads vLLM's configuration and requests, for both sides of vLLM."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

from . import wire
from .writer import KeyframeRow

ENVIRONMENT = (
    "VLLM_USE_V1",
    "VLLM_ENABLE_V1_MULTIPROCESSING",
    "VLLM_USE_V2_MODEL_RUNNER",
    "VLLM_WORKER_MULTIPROC_METHOD",
    "VLLM_TARGET_DEVICE",
    "VLLM_ATTENTION_BACKEND",
    "VLLM_KV_CACHE_LAYOUT",
    "VLLM_CPU_KVCACHE_SPACE",
    "VLLM_CPU_ATTN_SPLIT_KV",
    "VLLM_DP_RANK",
    "VLLM_DP_SIZE",
    "VLLM_XPU_PP_MICROBATCH",
    "VLLM_BATCH_INVARIANT",
    "VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE",
    "VLLM_USE_RAY_COMPILED_DAG_OVERLAP_COMM",
)
"""Environment variables that decide how vLLM schedules (its envs.py). No other variable is recorded."""

SECTIONS = (
    "scheduler_config",
    "cache_config",
    "speculative_config",
    "parallel_config",
    "model_config",
    "kv_transfer_config",
)
"""The sections of a `VllmConfig` whose sizes and switches are recorded, under vLLM's own names."""

TEXTS = {
    "policy", "runner_type", "runner", "method", "cache_dtype", "mamba_cache_mode", "mamba_cache_dtype", "kv_role",
    "kv_connector", "kv_load_failure_policy", "rejection_sample_method", "draft_sample_method",
    "distributed_executor_backend", "data_parallel_backend", "prefix_caching_hash_algo",
}  # fmt: skip
"""The only texts that are recorded of them. No path, address or model name is recorded."""

DERIVED = {
    "model_config": ("is_encoder_decoder", "uses_mrope", "is_diffusion", "is_hybrid"),
    "speculative_config": ("max_num_new_slots_for_drafting",),
    "parallel_config": ("data_parallel_index",),
}
"""Properties that the scheduler uses and that are not fields."""

NEVER_RECORDED = ("port", "ip", "host", "addr", "seed", "master")


def get(root: Any, path: str) -> Any:
    """`root.a.b` for the path "a.b"; None if any attribute is missing."""
    for name in path.split("."):
        root = getattr(root, name, None)
    return root


def describe(scheduler: Any) -> dict[str, Any]:
    """The engine's row (columns of `recorder.schema.ENGINE`) from a `Scheduler` (v1/core/sched/scheduler.py)."""
    config = scheduler.vllm_config
    drafts = get(config, "speculative_config.num_speculative_tokens")
    method = get(config, "speculative_config.method")
    return {
        "name": "vllm",
        "version": getattr(sys.modules.get("vllm.version"), "__version__", None),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "role": role(config),
        "dp_rank": data_parallel_rank(config),
        "max_num_batched_tokens": get(config, "scheduler_config.max_num_batched_tokens"),
        "max_profiled_tokens": get(config, "scheduler_config.max_num_batched_tokens"),
        "num_max_dispatch_tokens_per_rank": None,
        "max_num_seqs": get(config, "scheduler_config.max_num_seqs"),
        "num_speculative_tokens": drafts or 0,
        "spec_method": None if method is None else str(getattr(method, "value", method)),
        "block_size": get(scheduler, "block_size") or get(config, "cache_config.block_size"),
        "num_blocks": get(config, "cache_config.num_gpu_blocks"),
        "max_model_len": get(scheduler, "max_model_len") or get(config, "model_config.max_model_len"),
        "chunked_prefill": bool(
            getattr(
                config.scheduler_config,
                "enable_chunked_prefill",
                getattr(config.scheduler_config, "chunked_prefill_enabled", True),
            )
        ),
        "prefix_caching": bool(get(config, "cache_config.enable_prefix_caching")),
        "config": scheduling(scheduler),
        "env": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
    }


def role(config: Any) -> str:
    """`prefill` or `decode` if the engine is one half of a disaggregated deployment; else `mixed`."""
    kind = get(config, "kv_transfer_config.kv_role")
    return {"kv_producer": "prefill", "kv_consumer": "decode"}.get(str(kind), "mixed")


def data_parallel_rank(config: Any) -> int | None:
    """The engine's data-parallel rank (`ParallelConfig`)."""
    for name in ("data_parallel_index", "data_parallel_rank"):
        rank = get(config, "parallel_config." + name)
        if isinstance(rank, int):
            return rank
    return None


def scheduling(scheduler: Any) -> dict[str, Any]:
    """The configuration of the scheduler, as JSON under vLLM's own names, and the values that it derived from that."""
    config = scheduler.vllm_config
    values: dict[str, Any] = {
        name: _section(name, getattr(config, name))
        for name in SECTIONS
        if getattr(config, name, None) is not None
    }
    values["kv_cache_config"] = _kv_cache(scheduler)
    values["compilation_config"] = _captured(getattr(config, "compilation_config", None))
    values["scheduler"] = {
        name: value
        for name, value in vars(scheduler).items()
        if isinstance(value, (bool, int)) and not name.startswith("_")
    }
    values["scheduler_cls"] = type(scheduler).__name__
    return values


def _captured(compilation: Any) -> dict[str, Any]:
    """Whether batches run in captured graphs, and the sizes to which they are padded."""
    mode = getattr(compilation, "cudagraph_mode", None)
    return {
        "cudagraph_mode": getattr(mode, "name", None),
        "cudagraph_capture_sizes": list(getattr(compilation, "cudagraph_capture_sizes", None) or ()),
        "max_cudagraph_capture_size": getattr(compilation, "max_cudagraph_capture_size", None),
    }


def _section(name: str, section: Any) -> dict[str, Any]:
    values = dict(vars(section))
    for derived in DERIVED.get(name, ()):
        try:
            values[derived] = getattr(section, derived)
        except Exception:  # a property that needs something this configuration does not have
            continue
    return {key: plain for key, value in values.items() if (plain := _plain(key, value)) is not _NOTHING}


_NOTHING = object()


def _plain(key: str, value: Any) -> Any:
    """A value as JSON if it is a size, a switch or one of `TEXTS`; else `_NOTHING`."""
    if key.startswith("_") or any(word in NEVER_RECORDED for word in key.split("_")):
        return _NOTHING
    value = getattr(value, "value", value)  # an enumeration's
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return value if key in TEXTS else _NOTHING
    if isinstance(value, (list, tuple)) and len(value) <= 64:
        return list(value) if all(isinstance(item, (bool, int, float)) for item in value) else _NOTHING
    return _NOTHING


def _kv_cache(scheduler: Any) -> dict[str, Any]:
    """`KVCacheConfig`: the blocks, and each group's kind of attention."""
    config = getattr(scheduler, "kv_cache_config", None)
    groups = []
    for group in getattr(config, "kv_cache_groups", None) or ():
        spec = group.kv_cache_spec
        values = {
            key: plain for key, value in vars(spec).items() if (plain := _plain(key, value)) is not _NOTHING
        }
        values["dtype"] = str(getattr(spec, "dtype", None))
        groups.append({"type": type(spec).__name__, "num_layers": len(group.layer_names), "spec": values})
    return {"num_blocks": getattr(config, "num_blocks", None), "groups": groups}


FINISHED = {
    "FINISHED_STOPPED": "stop",
    "FINISHED_REPETITION": "stop",
    "FINISHED_LENGTH_CAPPED": "length",
    "FINISHED_IGNORED": "length",
    "FINISHED_ABORTED": "abort",
    "FINISHED_ERROR": "error",
}
"""`RequestStatus` (v1/request.py) -> our reason."""


def finish_reason(request: Any) -> str:
    """Why a request ended."""
    return FINISHED.get(getattr(request.status, "name", ""), "stop")


def is_prefilling(request: Any) -> bool:
    """Whether the request still has tokens to prefill. Call it before the request is scheduled in this call.

    The last sampled token of a decode is not computed yet. With asynchronous scheduling, a decode has placeholders for
    the tokens that are being sampled.
    """
    num_missing = request.num_tokens - request.num_computed_tokens
    if num_missing == 1 and not request.num_output_tokens:
        return not getattr(request, "num_output_placeholders", 0)
    return bool(num_missing > 1)


def running_row(request: Any, computed: int, blocks: int, cached: int) -> KeyframeRow:
    """The row of a running request. `computed`: tokens before its next step; of a decode, with the sampled one."""
    return KeyframeRow(
        request.request_id,
        request.num_prompt_tokens,
        max_tokens(request),
        computed,
        blocks,
        cached,
        request.num_output_tokens,
    )


def max_tokens(request: Any) -> int:
    """Most tokens that a request may generate; -1 if it does not say."""
    most = getattr(request, "max_tokens", None)
    return most if isinstance(most, int) else -1


def sent_at(request: Any, ts: int) -> int:
    """When the client's request reached the API server, UTC ns: `Request.arrival_time`. -1: not known.

    `ts`: when the scheduler got it; -1: before the recording. The API server may have another clock: it is never later.
    """
    seconds = getattr(request, "arrival_time", None)
    if not isinstance(seconds, float) or seconds < EARLIEST:
        return -1
    sent = int(seconds * 1e9)
    return sent if ts < 0 else min(sent, ts)


EARLIEST = 1e9
"""Seconds since 1970, in 2001: a smaller number is no time of this clock."""


def priority(request: Any) -> int:
    """The request's priority; `wire.NO_PRIORITY`: it has none."""
    value = getattr(request, "priority", None)
    return value if isinstance(value, int) and abs(value) < 1 << 31 else wire.NO_PRIORITY


def prompt_hashes(request: Any, block_size: int) -> list[bytes]:
    """8 bytes of each full prompt block's hash (`Request.block_hashes`); empty without prefix caching."""
    hashes = getattr(request, "block_hashes", None)
    if not hashes or block_size <= 0:
        return []
    return [_short(value) for value in hashes[: request.num_prompt_tokens // block_size]]


def _short(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value[:8].ljust(8, b"\0")
    value = getattr(value, "hash_value", value)
    return (hash(value) & (1 << 64) - 1).to_bytes(8, "little")
