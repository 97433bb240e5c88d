"""Builds the `Scheduler` of a vLLM package from recorded sizes and switches: no model, no weights, no device.

`vllm_driver.py` imports it from its own directory. Versions differ in the arguments of these classes, so the
classes are asked.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import pickle
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdtrace.drivers.driver_protocol import Message
    from fdtrace.drivers.vllm_settings import check_scheduler, derive_again
else:  # beside this script, without fdtrace
    from vllm_settings import check_scheduler, derive_again

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "vocab_size": 1 << 22,
    "torch_dtype": "float32",
}
"""A model's config.json. Of it, scheduling reads only the longest sequence."""

UNHELPFUL = ("scheduler_cls",)
"""Recorded fields that are not passed on: a class is no JSON."""


def supported_arguments(cls: Any, arguments: Message) -> Message:
    """Those of the arguments that this version's class accepts."""
    accepted: set[str] = set()
    for base in cls.__mro__[:-1]:
        parameters = inspect.signature(base).parameters
        accepted |= parameters.keys()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return {name: value for name, value in arguments.items() if name in accepted and name not in UNHELPFUL}


def set_recorded(config: Any, recorded: Message) -> None:
    """Set the recorded values in a config, if it has the fields. They hold what vLLM derived when it started."""
    for name, value in recorded.items():
        plain = isinstance(value, (bool, int, float, str)) or value is None
        if plain and name not in UNHELPFUL and name in getattr(type(config), "__dataclass_fields__", ()):
            object.__setattr__(config, name, value)


def build_config(sizes: Message, recorded: Message, changed: Message | None = None) -> Any:
    """A `VllmConfig` of these sizes. `recorded` holds vLLM's own fields by config, as a recording has them, with the
    `changed` settings in them.
    """
    from vllm import config as vllm

    if changed:
        check_scheduler(vllm, sizes, recorded.get("scheduler_config") or {})
    _answer_for_no_platform()
    with open("config.json", "w", encoding="utf-8") as file:
        json.dump({**MODEL, "max_position_embeddings": sizes["max_model_len"]}, file)
    directory = os.getcwd()
    model = vllm.ModelConfig(
        model=directory,
        tokenizer=directory,
        skip_tokenizer_init=True,
        max_model_len=sizes["max_model_len"],
        dtype="float32",
        seed=0,
    )
    scheduler = _scheduler_config(vllm, sizes)
    cache = vllm.CacheConfig(
        **supported_arguments(
            vllm.CacheConfig,
            {
                "block_size": sizes["block_size"],
                "enable_prefix_caching": sizes["prefix_caching"],
                "swap_space": 0,
            },
        )
    )
    speculative = _speculative_config(vllm, sizes, model)
    vllm_config = vllm.VllmConfig(
        model_config=model,
        cache_config=cache,
        scheduler_config=scheduler,
        device_config=vllm.DeviceConfig(device="cpu"),
        speculative_config=speculative,
    )
    switches = {"scheduler_config": scheduler, "cache_config": cache, "speculative_config": speculative}
    for name, config in switches.items():
        if config is not None:
            set_recorded(config, recorded.get(name) or {})
    _parallel(vllm_config.parallel_config, recorded.get("parallel_config") or {})
    cache.enable_prefix_caching = sizes["prefix_caching"]
    cache.num_gpu_blocks = sizes["num_blocks"]
    derive_again(vllm_config, changed or {})
    return vllm_config


def _answer_for_no_platform() -> None:
    """A build for a device that is not here has a platform without this method; early versions call it."""
    from vllm.platforms.interface import Platform, UnspecifiedPlatform

    if hasattr(Platform, "is_async_output_supported"):
        UnspecifiedPlatform.is_async_output_supported = classmethod(lambda cls, eager: False)


def _scheduler_config(vllm: Any, sizes: Message) -> Any:
    return vllm.SchedulerConfig(
        **supported_arguments(
            vllm.SchedulerConfig,
            {
                "max_num_batched_tokens": sizes["max_num_batched_tokens"],
                "max_num_seqs": sizes["max_num_seqs"],
                "max_model_len": sizes["max_model_len"],
                "is_encoder_decoder": False,
                "enable_chunked_prefill": sizes["chunked_prefill"],
                "async_scheduling": False,  # the recorded value is set after vLLM has checked the rest
            },
        )
    )


def _speculative_config(vllm: Any, sizes: Message, model: Any) -> Any:
    """Every method is built as n-gram, which needs no draft model. The recorded method is set afterwards."""
    if sizes["spec_method"] is None:
        return None
    arguments = {
        "method": "ngram",
        "num_speculative_tokens": sizes["num_speculative_tokens"],
        "prompt_lookup_max": 2,
        "prompt_lookup_min": 1,
        "target_model_config": model,
        "target_parallel_config": vllm.ParallelConfig(),
    }
    config = vllm.SpeculativeConfig(**supported_arguments(vllm.SpeculativeConfig, arguments))
    object.__setattr__(config, "method", sizes["spec_method"])
    return config


PARALLEL = ("pipeline_parallel_size", "decode_context_parallel_size", "prefill_context_parallel_size")
"""Sizes of the parallel layout that a rank's own scheduler reads."""


def _parallel(config: Any, recorded: Message) -> None:
    for name in PARALLEL:
        if recorded.get(name) is not None and hasattr(config, name):
            object.__setattr__(config, name, recorded[name])


DERIVED = (
    "max_num_scheduled_tokens",
    "num_spec_tokens",
    "num_lookahead_tokens",
    "num_prefill_lookahead",
    "scheduler_reserve_full_isl",
    "use_v2_model_runner",
)
"""What `Scheduler` derives from values that are not recorded: the derived value is taken from the recording."""


def build_scheduler(config: Any, sizes: Message, recorded: Message) -> Any:
    """The scheduler with the recorded groups of KV blocks; if none are recorded, one group of full attention layers."""
    from vllm.v1 import kv_cache_interface as kv
    from vllm.v1.structured_output import StructuredOutputManager

    groups = (recorded.get("kv_cache_config") or {}).get("groups") or [
        {"type": "FullAttentionSpec", "spec": {"block_size": sizes["block_size"]}}
    ]
    blocks = kv.KVCacheConfig(
        num_blocks=sizes["num_blocks"],
        kv_cache_tensors=[],
        kv_cache_groups=[
            kv.KVCacheGroupSpec([f"layer{i}"], _layers(kv, group)) for i, group in enumerate(groups)
        ],
    )
    recorded_values = recorded.get("scheduler") or {}
    cls = scheduler_class(config)
    arguments = {
        "vllm_config": config,
        "kv_cache_config": blocks,
        "structured_output_manager": StructuredOutputManager(config),
        "block_size": recorded_values.get("block_size", sizes["block_size"]),
        "hash_block_size": recorded_values.get("hash_block_size", sizes["block_size"]),
        "log_stats": False,
    }
    scheduler = cls(**supported_arguments(cls, arguments))
    for name in DERIVED:
        if name in recorded_values and hasattr(scheduler, name):
            setattr(scheduler, name, recorded_values[name])
    return scheduler


def _layers(kv: Any, group: Message) -> Any:
    """The KV cache specification of a group of layers."""
    import torch

    cls = getattr(kv, group["type"])
    sizes = {"num_kv_heads": 1, "head_size": 1, "use_mla": False, **group["spec"], "dtype": torch.float32}
    return cls(**supported_arguments(cls, sizes))


def scheduler_class(config: Any) -> Any:
    """The class that vLLM chooses for this configuration."""
    scheduler = config.scheduler_config
    get = getattr(scheduler, "get_scheduler_cls", None)
    if get is not None:
        return get()
    if getattr(scheduler, "async_scheduling", False):
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler

        return AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    return Scheduler


def batches_in_flight(config: Any) -> int:
    """Batches that are scheduled before the output of the first is taken: `EngineCore.batch_queue_size`."""
    max_batches = getattr(config, "max_concurrent_batches", None)
    if max_batches is not None:
        return int(max_batches)
    pipeline = int(config.parallel_config.pipeline_parallel_size)
    return max(pipeline, 2 if getattr(config.scheduler_config, "async_scheduling", False) else 1)


def block_hasher(sizes: Message, recorded: Message) -> Callable[[Any], Any] | None:
    """The function that hashes the content of a request's full blocks; None without prefix caching."""
    if not sizes["prefix_caching"]:
        return None
    from vllm.v1.core import kv_cache_utils

    def hashed(value: Any) -> bytes:
        return hashlib.sha256(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)).digest()

    kv_cache_utils.init_none_hash(hashed)
    size = (recorded.get("scheduler") or {}).get("hash_block_size", sizes["block_size"])
    hasher: Callable[[Any], Any] = kv_cache_utils.get_request_block_hasher(size, hashed)
    return hasher


def version() -> str:
    """The package's version."""
    return str(getattr(sys.modules.get("vllm"), "__version__", "unknown"))
