"""Fields of FastDeploy's configuration and requests, for the engine's and the worker's adapter."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import time
from array import array
from typing import Any

from .fastdeploy_reasons import chunking_disabled, envs
from .writer import KeyframeRow

ENVIRONMENT = (
    "ENABLE_V1_KVCACHE_SCHEDULER",
    "FD_DISABLE_CHUNKED_PREFILL",
    "FD_ENABLE_MAX_PREFILL",
    "FD_USE_NEW_TOKEN_RATIO_RESERVE",
    "FD_INIT_NEW_TOKEN_RATIO",
    "FD_MIN_NEW_TOKEN_RATIO",
    "FD_NEW_TOKEN_RATIO_DECAY",
    "FD_CLIP_MAX_NEW_TOKENS",
    "FD_RESERVE_OUTPUT_BLOCK_NUM_FOR_DECODE_WHEN_SCHEDULE_NEW_PREFILL",
    "FD_RESERVE_DECAY_OUTPUT_BLOCK_NUM_FOR_DECODE_WHEN_SCHEDULE_NEW_PREFILL",
    "FD_RESERVE_MIN_OUTPUT_BLOCK_NUM_FOR_DECODE_WHEN_SCHEDULE_NEW_PREFILL",
    "FD_ENC_DEC_BLOCK_NUM",
    "FD_DETERMINISTIC_MODE",
    "FD_SAVE_OUTPUT_CACHE_FOR_PREEMPTED_REQUEST",
)
"""Variables that decide how FastDeploy schedules (its envs.py). Besides these, only Paddle's FLAGS_* are recorded."""


def _get(root: Any, path: str) -> Any:
    for name in path.split("."):
        root = getattr(root, name, None)
    return root


def environment() -> dict[str, str]:
    """The variables of `ENVIRONMENT` as FastDeploy reads them, and Paddle's flags as they are set."""
    variables = {}
    for name in ENVIRONMENT:
        value = getattr(envs(), name, os.environ.get(name))
        if value is not None:
            variables[name] = str(int(value)) if isinstance(value, bool) else str(value)
    variables.update((name, value) for name, value in os.environ.items() if name.startswith("FLAGS_"))
    return variables


def describe(config: Any, manager: Any = None) -> dict[str, Any]:
    """The engine's row (columns of `recorder.schema.ENGINE`) from an `FDConfig`."""
    method = _get(config, "speculative_config.method")
    drafts = _get(config, "speculative_config.num_speculative_tokens")
    blocks = _get(manager, "cache_manager.num_gpu_blocks")
    rank = _get(config, "parallel_config.local_data_parallel_id")
    return {
        "name": "fastdeploy",
        "version": _version(),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "role": _get(config, "scheduler_config.splitwise_role"),
        "dp_rank": rank if isinstance(rank, int) else None,
        "message_queue": os.environ.get("INFERENCE_MSG_QUEUE_ID"),
        "max_num_batched_tokens": _get(config, "scheduler_config.max_num_batched_tokens"),
        "max_profiled_tokens": profiled_tokens(config),
        "num_max_dispatch_tokens_per_rank": dispatch_tokens(config),
        "max_num_seqs": _get(config, "scheduler_config.max_num_seqs"),
        "num_speculative_tokens": drafts,
        "spec_method": None if method is None else str(getattr(method, "value", method)),
        "block_size": _get(config, "cache_config.block_size"),
        "num_blocks": blocks if blocks is not None else _get(config, "cache_config.total_block_num"),
        "max_model_len": _get(config, "model_config.max_model_len"),
        "chunked_prefill": not chunking_disabled(),
        "prefix_caching": bool(_get(config, "cache_config.enable_prefix_caching")),
        "config": scheduling(config),
        "env": environment(),
    }


def scheduling(config: Any) -> dict[str, Any]:
    """The rest of the configuration that scheduling depends on."""
    paths = (
        "cache_config.enc_dec_block_num",
        "cache_config.prealloc_dec_block_slot_num_threshold",
        "cache_config.max_block_num_per_seq",
        "cache_config.kv_cache_ratio",
        "cache_config.enable_output_caching",
        "scheduler_config.enable_overlap_schedule",
        "parallel_config.tensor_parallel_size",
        "parallel_config.data_parallel_size",
        "parallel_config.enable_expert_parallel",
        "model_config.enable_mm",
    )
    values = {path.split(".")[1]: _get(config, path) for path in paths}
    return {name: value for name, value in values.items() if isinstance(value, (bool, int, float, str))}


def keeps_aborted_slots(manager: Any) -> bool | None:
    """Whether `finish_requests` leaves a request that is being aborted in `to_be_aborted_req_id_set`, so that it holds
    its slot forever. Before commit 9ef8467d7 its code does not name the set. None: the code cannot be read.
    """
    method: Any = getattr(type(manager), "finish_requests", None)
    while hasattr(method, "__wrapped__"):
        method = method.__wrapped__
    code = getattr(method, "__code__", None)
    return None if code is None else "to_be_aborted_req_id_set" not in code.co_names


def code_digest(*parts: Any) -> str | None:
    """A digest of the source files that define these objects' classes. It tells a replay whether the scheduler of a
    checkout is the recorded one. None if a file cannot be read.
    """
    digest = hashlib.blake2b(digest_size=8)
    try:
        for part in parts:
            with open(sys.modules[type(part).__module__].__file__ or "", "rb") as file:
                digest.update(file.read())
    except (OSError, KeyError, AttributeError):  # the module has no file
        return None
    return digest.hexdigest()


def profiled_tokens(config: Any) -> int | None:
    """Tokens for which memory was profiled at start-up (`FDConfig.get_max_chunk_tokens`). None: not known."""
    try:
        return int(config.get_max_chunk_tokens())
    except Exception:  # in some versions the method needs fields that this configuration lacks
        return None


def dispatch_tokens(config: Any) -> int | None:
    """The expert-parallel dispatch buffer of a rank; None without expert parallelism."""
    if not (_get(config, "parallel_config.use_ep") or _get(config, "parallel_config.enable_expert_parallel")):
        return None
    tokens = _get(config, "model_config.num_max_dispatch_tokens_per_rank")
    return tokens if isinstance(tokens, int) and tokens > 0 else None


def _version() -> str | None:
    module = sys.modules.get("fastdeploy")
    for name in ("__version__", "version"):
        value = getattr(module, name, None)
        if isinstance(value, str) and value != "Unknown":
            return value
    return None


def budget(config: Any, names: dict[str, Any]) -> tuple[int | None, int, int]:
    """The token budget with which a call of `schedule()` began, the tokens subtracted for decodes before, the decodes.

    `names` are the call's local variables. They show which formula it has: PR 7499 and later count
    `num_running_decode_reqs` and subtract for them. PR 7438 has only `tokens_per_seq`. Before, there is neither.
    None: the budget is not known. -1: the number of decodes is not known.
    """
    most = config.scheduler_config.max_num_batched_tokens
    each, decodes = names.get("tokens_per_seq"), names.get("num_running_decode_reqs")
    if "token_budget" not in names:
        return None, 0, -1
    if decodes is not None and each is not None:
        return most - decodes * each, decodes * each, decodes
    if each is not None:
        return max(most - config.scheduler_config.max_num_seqs * each, min(most, 512)), 0, -1
    return most, 0, -1


def reserve(manager: Any) -> tuple[str, None, int]:
    """What is kept free for running requests, in the form of `wire_order.PLACES`. Versions reserve in two ways."""
    ratio = getattr(manager, "new_token_ratio", None)
    if ratio is not None and getattr(manager, "use_new_token_ratio_reserve", True):
        return "ratio", None, round(ratio * 1e9)
    blocks = getattr(manager, "current_reserve_output_block_num", 0)
    billionths = round(getattr(manager, "current_reserve_output_block_num_float", blocks) * 1e9)
    relaxed = getattr(manager, "can_relax_prefill_strategy", False)
    return "relaxed reserve" if relaxed else "reserve", None, billionths


def received_at(request: Any) -> int:
    """When the engine's own scheduler got it from its client, ns; `add_request` is called later, at the engine's fetch.

    FastDeploy: `RequestMetrics.scheduler_recv_req_time` (engine/request.py), on the clock of `time.time()`.
    """
    now = time.time_ns()
    received = getattr(getattr(request, "metrics", None), "scheduler_recv_req_time", None)
    return min(now, int(received * 1e9)) if isinstance(received, float) and received > 0 else now


def max_tokens(request: Any) -> int:
    """Most tokens that a request may generate; -1: not known."""
    most = _get(request, "sampling_params.max_tokens")
    return most if isinstance(most, int) else -1


def block_hashes(config: Any, request: Any, output: Any = ()) -> list[bytes]:
    """8 bytes of hash for each full block of a prompt and its `output`. Two are equal if the block and all before it
    are equal. Empty without prefix caching.

    They cover the same as FastDeploy's own keys (`PrefixCacheManager.request_match_blocks`): the tokens, and the
    multimodal items in the block.
    """
    if not _get(config, "cache_config.enable_prefix_caching"):
        return []
    size, tokens = _get(config, "cache_config.block_size"), getattr(request, "prompt_token_ids", None)
    if not size or tokens is None:  # preprocessed later
        return []
    content = array("q", tokens)
    content.extend(output)
    hashes, previous = [], b""
    for start in range(0, len(content) - size + 1, size):
        block = content[start : start + size].tobytes() + _items(request, start, start + size)
        previous = hashlib.blake2b(block, digest_size=8, key=previous).digest()
        hashes.append(previous)
    return hashes


def _items(request: Any, start: int, end: int) -> bytes:
    """The hashes of the multimodal items that overlap the tokens `start` to `end`."""
    inputs = getattr(request, "multimodal_inputs", None) or {}
    pairs = zip(inputs.get("mm_positions") or (), inputs.get("mm_hashes") or ())
    return "".join(
        str(value) for place, value in pairs if place.offset < end and place.offset + place.length > start
    ).encode()


def running_row(request: Any, computed: int | None = None) -> KeyframeRow:
    """A running request. `computed`: tokens computed before its next step; None: as the request itself says."""
    if computed is None:
        computed = request.num_computed_tokens
        if computed >= request.need_prefill_tokens:
            computed = request.num_total_tokens
    return KeyframeRow(
        request.request_id,
        request.prompt_token_ids_len or 0,
        max_tokens(request),
        computed,
        len(request.block_tables),
        getattr(request, "num_cached_tokens", 0) or 0,
        len(request.output_token_ids),
    )
