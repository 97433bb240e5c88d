"""FastDeploy's own variables in a case's `env`: those that the model reads, and those that only FastDeploy reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fdtrace.recorder.errors import UsageError

WHOLE = (
    "FD_ENC_DEC_BLOCK_NUM",
    "FD_RESERVE_OUTPUT_BLOCK_NUM_FOR_DECODE_WHEN_SCHEDULE_NEW_PREFILL",
    "FD_RESERVE_MIN_OUTPUT_BLOCK_NUM_FOR_DECODE_WHEN_SCHEDULE_NEW_PREFILL",
    "FD_CLIP_MAX_NEW_TOKENS",
    "FD_DETERMINISTIC_SPLIT_KV_SIZE",
)
SHARES = (
    "FD_RESERVE_DECAY_OUTPUT_BLOCK_NUM_FOR_DECODE_WHEN_SCHEDULE_NEW_PREFILL",
    "FD_INIT_NEW_TOKEN_RATIO",
    "FD_MIN_NEW_TOKEN_RATIO",
    "FD_NEW_TOKEN_RATIO_DECAY",
)
FLAGS = ("FD_DISABLE_CHUNKED_PREFILL", "FD_USE_NEW_TOKEN_RATIO_RESERVE", "FD_DETERMINISTIC_MODE")
MODELLED = (*WHOLE, *SHARES, *FLAGS)

_OTHERS = """
DO_NOT_TRACK ENABLE_V1_KVCACHE_SCHEDULER ENCODE_FEATURE_BOS_AK ENCODE_FEATURE_BOS_SK
ENCODE_FEATURE_ENDPOINT EXPORTER_OTLP_ENDPOINT EXPORTER_OTLP_HEADERS FD_API_KEY FD_AS_ONLY_FLUSH
FD_ATTENTION_BACKEND FD_BUILDING_ARCS FD_CACHE_PARAMS FD_CACHE_PROC_ERROR_COUNT FD_CACHE_PROC_EXIT_TIMEOUT
FD_CONFIG_ROOT FD_CONSOLE_DECODE_LOG_INTERVAL FD_CONSOLE_SCHEDULER_METRICS FD_CPU_USE_BF16
FD_CUSTOM_AR_MAX_SIZE_MB FD_DEBUG FD_DETERMINISTIC_LOG_MODE FD_DISABLED_RECOVER FD_ENABLE_ASYNC_LLM
FD_ENABLE_CACHE_TASK FD_ENABLE_E2W_TENSOR_CONVERT FD_ENABLE_INTERNAL_ADAPTER FD_ENABLE_MAX_PREFILL
FD_ENABLE_MODEL_CACHE FD_ENABLE_MODEL_LOAD_CACHE FD_ENABLE_MULTI_API_SERVER FD_ENABLE_PDL
FD_ENABLE_PD_RDMA_EAGER_CONNECT FD_ENABLE_REQUEST_DISCONNECT_STOP_INFERENCE FD_ENABLE_RETURN_TEXT
FD_ENABLE_RL FD_ENABLE_SWAP_SPACE_CLEARING FD_ENABLE_TOP_P_ONE_OPT FD_ENABLE_V1_UPDATE_WEIGHTS
FD_ENGINE_TASK_QUEUE_WITH_SHM FD_EP_BATCHED_TOKEN_TIMEOUT FD_EP_MAX_PREFETCH_TASK_NUM FD_FILL_BITMASK_BATCH
FD_FOR_TORCH_MODEL_FORMAT FD_FP8_QUANT_WITH_POW2SCALE FD_GUIDANCE_DISABLE_ADDITIONAL FD_HOST_NAME
FD_HPU_CHUNK_SIZE FD_HPU_MEASUREMENT_MODE FD_JOB_ID FD_LIMIT_THINKING_CONTENT_TRUNCATE_STR
FD_LLGUIDANCE_LOG_LEVEL FD_LOG_BACKUP_COUNT FD_LOG_DIR FD_LOG_LEVEL FD_LOG_MAX_LEN FD_LOG_REQUESTS
FD_LOG_REQUESTS_LEVEL FD_MAX_STOP_SEQS_NUM FD_MODEL_CACHE FD_MODEL_SOURCE FD_MOE_BACKEND
FD_MOE_MXFP4_BACKEND FD_MOE_PROB_IN_ADVANCE FD_NVFP4_GEMM_BACKEND FD_NVFP4_LOAD_BLOCKSCALE_LEAVE
FD_OTLP_EXPORTER_MAX_EXPORT_BATCH_SIZE FD_OTLP_EXPORTER_SCHEDULE_DELAY_MILLIS FD_PD_CHANGEABLE
FD_PD_REORDER FD_PD_TRANSFER_VIA_STORAGE FD_PLUGINS FD_PREFILL_PREPARE_REQ_THREAD_NUM
FD_PREFILL_WAIT_DECODE_RESOURCE_SECONDS FD_SAMPLING_CLASS FD_SAVE_OUTPUT_CACHE_FOR_PREEMPTED_REQUEST
FD_SERVICE_NAME FD_STOP_SEQS_MAX_LEN FD_SUPPORT_MAX_CONNECTIONS FD_TOKEN_PROCESSOR_HEALTH_TIMEOUT
FD_TP_GROUP_GID_OFFSET FD_TRACE FD_TRITON_KERNEL_CACHE_DIR FD_USAGE_SOURCE FD_USAGE_STATS_SERVER
FD_USE_AGGREGATE_SEND FD_USE_DEEP_GEMM FD_USE_GET_SAVE_OUTPUT_V1 FD_USE_HF_TOKENIZER FD_USE_KVCACHE_LOCK
FD_USE_MACHETE FD_USE_PFCC_DEEP_EP FD_USE_PHI_FP8_QUANT FD_USE_PHI_MOE_PERMUTE FD_USE_PHI_MOE_TOPK
FD_USE_PHI_RMSNORM FD_WORKER_ALIVE_TIMEOUT FD_XPU_ENABLE_MIXED_EP_MODE FD_XPU_MOE_FFN_QUANT_TYPE_MAP
FD_ZMQ_CONTROL_CMD_SERVER_PORTS FD_ZMQ_RECV_REQUEST_SERVER_PORT FD_ZMQ_RECV_REQUEST_SERVER_PORTS
FD_ZMQ_SEND_RESPONSE_SERVER_PORT FD_ZMQ_SEND_RESPONSE_SERVER_PORTS FD_ZMQ_SNDHWM FILE_BACKEND_STORAGE_DIR
FMQ_CONFIG_JSON PREFILL_CONTINUOUS_REQUEST_DECODE_RESOURCES TRACES_ENABLE TRACES_EXPORTER
USE_DECODE_UNIFIED_ATTENTION ZMQ_SEND_BATCH_DATA
"""
VARIABLES_NOT_MODELLED = tuple(_OTHERS.split())
"""The rest of FastDeploy's variables: `fastdeploy/envs.py` of 72ce56b10 and of release 2.6."""

VARIABLES = (*MODELLED, *VARIABLES_NOT_MODELLED)

LARGEST = 2**31 - 1
"""The largest number of a case: engines count in 32 bits."""


def variables_not_modelled(env: Mapping[str, Any]) -> list[str]:
    """A note for each variable that the model does not read."""
    return [
        f"env.{name}: the model does not read it; a real scheduler (--scheduler fastdeploy=DIR) does"
        for name, value in env.items()
        if name in VARIABLES_NOT_MODELLED and value is not None
    ]


def read_variables(env: Mapping[str, Any]) -> dict[str, Any]:
    """The variables that the model reads, as numbers; null counts as missing. UsageError names the place."""
    values: dict[str, Any] = {}
    for name, value in env.items():
        if value is None:
            continue
        if not isinstance(value, (str, int, float)) or isinstance(value, bool):
            raise _wrong(name, value, "a text or a number")
        if name in WHOLE:
            values[name] = _number(name, value, int, "a whole number, 0 or more")
        elif name in SHARES:
            values[name] = _number(name, value, float, "a number, 0 or more")
        elif name in FLAGS:
            values[name] = _number(name, value, int, "0 or 1")
            if values[name] > 1:
                raise _wrong(name, value, "0 or 1")
    if values.get("FD_DETERMINISTIC_SPLIT_KV_SIZE") == 0:
        raise _wrong("FD_DETERMINISTIC_SPLIT_KV_SIZE", 0, "a whole number, 1 or more")
    return values


def _number(name: str, value: Any, convert: type[int] | type[float], expected: str) -> int | float:
    """Convert the text of a variable as FastDeploy's envs.py does."""
    if convert is int and isinstance(value, float):
        raise _wrong(name, value, expected)
    try:
        number = convert(value)
    except ValueError:
        raise _wrong(name, value, expected) from None
    if not math.isfinite(number) or not 0 <= number <= LARGEST:
        raise _wrong(name, value, expected)
    return number


def _wrong(name: str, value: Any, expected: str) -> UsageError:
    shown = "true or false" if isinstance(value, bool) else f"{value!r:.40}"
    return UsageError(
        f"`env.{name}` must be {expected}, not {shown}", hint="as FastDeploy's envs.py reads it"
    )
