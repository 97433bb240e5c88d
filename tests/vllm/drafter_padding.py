"""Pads batches of a drafter by a real vLLM's own code, hooked, and prints what fdtrace's adapter noted of each as JSON.

    python drafter_padding.py AGENT

Run by a Python that has vLLM. AGENT is the directory of fdtrace's agent. A CPU captures no graphs: so the dispatcher
gets sizes as a GPU has them. Nothing runs in the graphs here; padding needs the sizes only.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SIZES = [1, 2, 4, 8, 16, 32, 64]
TOKENS = [5, 33, 64, 70]


def drafter(limit: int) -> tuple[Any, Any]:
    """A drafter of vLLM's with only what its padding needs, and the configuration of its graphs."""
    from vllm.config import CompilationConfig, CUDAGraphMode
    from vllm.v1.cudagraph_dispatcher import CudagraphDispatcher
    from vllm.v1.spec_decode.llm_base_proposer import SpecDecodeBaseProposer

    compilation = CompilationConfig(
        cudagraph_mode=CUDAGraphMode.FULL, cudagraph_capture_sizes=SIZES, max_cudagraph_capture_size=SIZES[-1]
    )
    config = SimpleNamespace(
        compilation_config=compilation, num_speculative_tokens=3, lora_config=None,
        scheduler_config=SimpleNamespace(max_num_seqs=16, max_num_batched_tokens=limit),
        parallel_config=SimpleNamespace(data_parallel_size=1),
    )  # fmt: skip
    found = object.__new__(SpecDecodeBaseProposer)
    found.cudagraph_dispatcher, found.vllm_config = CudagraphDispatcher(config), config
    found.cudagraph_dispatcher.initialize_cudagraph_keys(CUDAGraphMode.FULL)
    names = SpecDecodeBaseProposer.__init__.__code__.co_names
    found.max_num_tokens = found.max_query_tokens = limit
    assert {"max_num_tokens", "max_query_tokens", "max_num_batched_tokens"} <= set(names)
    return found, compilation


def main() -> None:
    """Hook the drafter's class, let it pad, and print what was noted."""
    told = os.dup(1)
    os.dup2(2, 1)
    sys.path.insert(1, str(Path(__file__).parent))
    stops = importlib.import_module("scheduler_stops")
    proposer, compilation = drafter(limit=60)
    worker, config = stops.worker_adapter_of(Path(sys.argv[1]))
    noted = []
    for tokens in TOKENS:
        worker.running = SimpleNamespace(drafted=None)
        proposer._determine_batch_execution_and_padding(tokens)
        first = worker.running.drafted
        proposer._determine_batch_execution_and_padding(1)
        assert worker.running.drafted is first, "the passes after the first run less"
        noted.append(list(first))
    answer = {"noted": noted, "captured": config._captured(compilation)}
    with os.fdopen(told, "w", encoding="utf-8") as out:
        out.write(json.dumps(answer))


if __name__ == "__main__":
    main()
