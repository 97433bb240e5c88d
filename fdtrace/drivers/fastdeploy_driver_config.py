"""FastDeploy's configuration of a driven scheduler. Loaded by `fastdeploy_driver.py`, which runs as a file of its own."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

Message = dict[str, Any]  # Python 3.9: no other use of the new spelling at run time


def build_config(sizes: Message) -> Any:
    """An `FDConfig` of these sizes, checked by FastDeploy itself; the model is not there."""
    from fastdeploy import config as fd
    from fastdeploy import envs
    from fastdeploy.scheduler.config import SchedulerConfig

    # Off CUDA its own defaults would choose the scheduler of before V1.
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
    cache.enc_dec_block_num = sizes["enc_dec_block_num"]
    cache.bytes_per_token_per_layer = cache.bytes_per_layer_per_block = cache.bytes_per_block = 1
    speculation = fd.SpeculativeConfig({})
    _speculate(speculation, sizes)
    found = fd.FDConfig(
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
    return found


def _speculate(config: Any, sizes: Message) -> None:
    config.num_speculative_tokens = sizes["num_speculative_tokens"]
    if sizes["spec_method"] is not None:
        config.method = sizes["spec_method"]
