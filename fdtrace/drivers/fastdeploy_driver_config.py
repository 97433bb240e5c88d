"""FastDeploy's configuration for a driven scheduler.

`fastdeploy_driver.py`, which runs as a script, imports it from its own directory.
"""

from __future__ import annotations

import hashlib
import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdtrace.drivers.driver_protocol import Message


def build_config(sizes: Message) -> Any:
    """An `FDConfig` of these sizes, checked by FastDeploy itself. It has no model."""
    from fastdeploy import config as fd
    from fastdeploy import envs
    from fastdeploy.scheduler.config import SchedulerConfig

    # Without CUDA its defaults would choose the scheduler from before V1.
    envs.ENABLE_V1_KVCACHE_SCHEDULER = 1
    cache = fd.CacheConfig(
        {
            "block_size": sizes["block_size"],
            "num_gpu_blocks_override": sizes["num_blocks"],
            "enable_prefix_caching": sizes["prefix_caching"],
            "enable_chunked_prefill": sizes["chunked_prefill"],
            "prealloc_dec_block_slot_num_threshold": sizes["prealloc_threshold"],
            "cache_queue_port": str(os.getpid()),
        }
    )
    cache.enable_output_caching = sizes["output_caching"]
    cache.enc_dec_block_num = sizes["enc_dec_block_num"]
    cache.bytes_per_token_per_layer = cache.bytes_per_layer_per_block = cache.bytes_per_block = 1
    speculation = fd.SpeculativeConfig({})
    _speculate(speculation, sizes)
    fd_config = fd.FDConfig(
        model_config=SimpleNamespace(
            architectures=["none"],
            enable_mm=False,
            max_model_len=sizes["max_model_len"],
            mm_max_tokens_per_item=None,
            num_hidden_layers=1,
            version="none",
        ),
        cache_config=cache,
        # The number names shared memory, so that no two processes share it.
        parallel_config=fd.ParallelConfig({"engine_worker_queue_port": str(os.getpid())}),
        speculative_config=speculation,
        graph_opt_config=fd.GraphOptimizationConfig({}),
        scheduler_config=SchedulerConfig(
            {
                "max_num_batched_tokens": sizes["max_num_batched_tokens"],
                "max_num_seqs": sizes["max_num_seqs"],
                "splitwise_role": sizes["role"],
            }
        ),
    )
    _speculate(speculation, sizes)
    return fd_config


def code_digest(*parts: Any) -> str | None:
    """A digest of a scheduler's source, as `recorder.agent.fastdeploy_config.code_digest` computes it."""
    digest = hashlib.blake2b(digest_size=8)
    try:
        for part in parts:
            with open(sys.modules[type(part).__module__].__file__ or "", "rb") as file:
                digest.update(file.read())
    except (OSError, KeyError, AttributeError):
        return None
    return digest.hexdigest()


def _speculate(config: Any, sizes: Message) -> None:
    config.num_speculative_tokens = sizes["num_speculative_tokens"]
    if sizes["spec_method"] is not None:
        config.method = sizes["spec_method"]
