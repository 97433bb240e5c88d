"""Builds the continuous batching processor of a transformers package from recorded sizes: no model, no device.

`transformers_driver.py` imports it from its own directory. Versions differ in the arguments of these classes, so the
classes are asked.
"""

from __future__ import annotations

import inspect
import queue
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdtrace.drivers.driver_protocol import Message

MODEL = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "hidden_size": 32,
         "intermediate_size": 32, "vocab_size": 64}  # fmt: skip
"""A model's sizes. Of them, scheduling reads only the size of a block, which is just a unit here."""

FORCED = ("max_tokens_read", "read_cache_limit", "max_decode_fast_path_length", "max_blocks_per_request")
"""What the cache derives from the model and the device: the recorded value is set instead."""


def supported_arguments(function: Any, arguments: Message) -> Message:
    """Those of the arguments that this version's function or class accepts."""
    return {
        name: value for name, value in arguments.items() if name in inspect.signature(function).parameters
    }


def build_processor(sizes: Message, recorded: Message, outputs: Any, router: Any) -> Any:
    """A `ContinuousBatchProcessor` with its own scheduler, cache and offloading manager, and a played model. `outputs`
    takes the place of its inputs and outputs, `router` that of the object which delivers results.
    """
    import torch
    from transformers import LlamaConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig
    from transformers.generation.continuous_batching import cache as caches
    from transformers.generation.continuous_batching import continuous_api as api
    from transformers.generation.continuous_batching import distributed, offloading_manager, scheduler

    model = LlamaConfig(**MODEL, max_position_embeddings=sizes["max_model_len"])
    helper = distributed.DistributedHelper(
        **supported_arguments(
            distributed.DistributedHelper, {"device_mesh": None, "cpu_group_timeout": None, "tp_plan": {}}
        )
    )
    config = ContinuousBatchingConfig(**_fields(ContinuousBatchingConfig, sizes, recorded))
    _take_sizes_as_they_are(caches)
    arguments = {
        "config": model, "continuous_batching_config": config, "device": torch.device("cpu"),
        "distributed_helper": helper, "dtype": torch.float16, "tp_size": None, "tp_plan": {},
    }  # fmt: skip
    cache = caches.PagedAttentionCache(**supported_arguments(caches.PagedAttentionCache, arguments))
    for name in FORCED:
        if name in recorded.get("cache", {}) and hasattr(cache, name):
            setattr(cache, name, recorded["cache"][name])
    cls = scheduler.SCHEDULER_MAPPING.get(config.scheduler_type, scheduler.FIFOScheduler)
    margin = recorded.get("safety_margin", config.safety_margin)
    batch_scheduler = cls(
        **supported_arguments(
            cls, {"cache": cache, "safety_margin": margin, "max_requests_per_batch": sizes["max_num_seqs"]}
        )
    )
    processor = object.__new__(api.ContinuousBatchProcessor)
    vars(processor).update(
        cache=cache, config=model, cb_config=config, logit_processor=PlayedModel(), input_queue=queue.Queue(),
        cancel_queue=queue.Queue(), output_router=router, background_thread_status=api.BackgroundThreadStatus(),
        scheduler=batch_scheduler, distributed_helper=helper, do_sample=False, return_logprobs=False,
        max_batch_tokens=sizes["max_num_batched_tokens"], inputs_and_outputs=outputs, model_runner=PlayedModel(),
        use_async_batching=bool(recorded.get("use_async_batching")),
    )  # fmt: skip
    processor.offloading_manager = _offloading(
        offloading_manager, cache, batch_scheduler, config, helper, recorded
    )
    return processor


def _fields(cls: Any, sizes: Message, recorded: Message) -> Message:
    """The fields of the configuration: the recorded ones, overridden by the sizes of this replay."""
    names = cls.__dataclass_fields__
    values = {
        name: value
        for name, value in recorded.get("continuous_batching_config", {}).items()
        if name in names and not isinstance(value, (list, dict))
    }
    page = "page_size" if "page_size" in names else "block_size"
    values.update({
        page: sizes["block_size"], "num_blocks": sizes["num_blocks"],
        "max_batch_tokens": sizes["max_num_batched_tokens"],
        "max_requests_per_batch": sizes["max_num_seqs"], "allow_block_sharing": sizes["prefix_caching"],
        "use_async_batching": False, "use_cuda_graph": False, "default_compile_level": 0,
    })  # fmt: skip
    if page == "page_size":
        values.pop("block_size", None)  # its deprecated name
    values.pop("use_default_compile_configs", None)
    values.pop("max_cached_graphs", None)
    values["max_blocks_per_request"] = values.get("max_blocks_per_request") or 0
    values["max_memory_percent"] = values.get("max_memory_percent") or 0.9
    return {name: value for name, value in values.items() if name in names}


def _take_sizes_as_they_are(caches: Any) -> None:
    """Take the sizes without a check: the free memory of this machine says nothing about the recorded device."""
    handler = caches.PagedAttentionMemoryHandler
    handler._check_footprint = lambda self, tokens, blocks, *_: (tokens, blocks)


def _offloading(module: Any, cache: Any, scheduler: Any, config: Any, helper: Any, recorded: Message) -> Any:
    """The offloading manager. Its pool has as many blocks as the recorded pool."""
    import torch

    size = recorded.get("cpu_pool_size")
    if size is not None:
        space = (size + 0.5) * _pool_unit(cache) / 2**30 if size else 0.0
    else:  # a recording of an earlier fdtrace
        space = config.cpu_offload_space if recorded.get("offloads_to_cpu", True) else 0.0
        recorded_bytes = recorded.get("cache", {}).get("bytes_per_sector")
        if space and recorded_bytes:
            space = space * cache.bytes_per_sector / recorded_bytes
    empty = torch.empty

    def plain(*size: Any, pin_memory: bool = False, **options: Any) -> Any:
        return empty(*size, **options)

    torch.empty = plain  # pinned memory needs an accelerator
    try:
        return module.OffloadingManager(
            **supported_arguments(
                module.OffloadingManager,
                {
                    "cache": cache, "scheduler": scheduler, "cpu_offload_space_gib": space, "safety_threshold": 1.0,
                    "compute_stream": None, "distributed_helper": helper,
                },
            )
        )  # fmt: skip
    finally:
        torch.empty = empty


def _pool_unit(cache: Any) -> int:
    """Bytes of what the size of the CPU pool counts: sectors, up to 5.17 KV blocks of keys and values."""
    if hasattr(cache, "bytes_per_sector"):
        return int(cache.bytes_per_sector)
    per_token = 2 * len(cache.key_cache) * cache.num_key_value_heads * cache.head_dim * cache.dtype.itemsize
    return int(per_token * cache.block_size)


class PlayedModel:
    """A model runner and a logits processor that leave everything as it is."""

    pad_inputs = False

    def maybe_pad_inputs(
        self, num_q_tokens: int, max_kv_read: int, use_decode_fast_path: bool
    ) -> tuple[int, int]:
        """The same sizes."""
        return num_q_tokens, max_kv_read

    def check_kwargs(self, *_: Any) -> None:
        """No request asks for anything."""


def version() -> str:
    """The package's version."""
    return str(getattr(sys.modules.get("transformers"), "__version__", "unknown"))
