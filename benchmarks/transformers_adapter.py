"""What the hooks alone cost transformers' generation loop: its real scheduler and cache, with the model played.

    $TRANSFORMERS_PYTHON benchmarks/transformers_adapter.py [--requests 32 128 256]

Blocks of steps with the hooks in place and recording, and without any, in the order that cancels a drift. The figures
are the loop's own processor time a step (the 20th percentile of all steps), which other work on the machine does not
count in, but for what it takes of the caches.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BLOCKS, STEPS = 12, 150


def module(name: str, path: Path) -> Any:
    """A script's module: its directory has others whose names are those of packages."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


def processor_of(requests: int) -> Any:
    """A batch processor of transformers' that decodes so many requests, with nothing left to prefill."""
    from transformers.generation.continuous_batching import input_outputs
    from transformers.generation.continuous_batching.requests import RequestState

    drivers = ROOT / "fdtrace" / "drivers"
    build = module("transformers_build", drivers / "transformers_build.py")
    played = module("transformers_played", drivers / "transformers_played.py")
    cls = played.PlayedOutputs
    cls.__module__ = input_outputs.__name__  # where the hooks look for it
    input_outputs.PlayedOutputs = cls
    cls.get_model_kwargs = cls.retrieve_device_outputs = lambda self, **_: {}
    build.PlayedModel.compute_batch = lambda self, model, data: None
    spec = {"prompt": 16, "output": 1 << 20, "max_tokens": 1 << 20, "contents": [1000]}
    playing = {f"r{i}": played.PlayedSequence(spec, 256) for i in range(requests)}
    sizes = {
        "max_num_batched_tokens": 8192, "max_num_seqs": 1024, "num_blocks": 1 << 14, "block_size": 256,
        "max_model_len": 1 << 20, "prefix_caching": False,
    }  # fmt: skip
    found = build.build_processor(sizes, {}, cls(playing), played.SilentRouter())
    for name in playing:
        found.input_queue.put(
            RequestState(request_id=name, initial_tokens=[1000] * 16, max_new_tokens=1 << 20)
        )
    return found


def run(processor: Any, steps: int) -> list[int]:
    """Processor time of each step, ns."""
    took = []
    for _ in range(steps):
        began = time.thread_time_ns()
        processor.prepare_next_batch()
        processor._generation_step(None)
        processor.update_batch()
        took.append(time.thread_time_ns() - began)
    return took


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, nargs="+", default=[32, 128, 256])
    args = parser.parse_args()
    agent_files = ROOT / "recorder" / "agent"
    load = module("load", agent_files / "load.py")
    arm = load.load(load.read_sources(str(agent_files), ("transformers",)), "benchmark")
    control, wire = sys.modules[f"{load.NAME}.control"], sys.modules[f"{load.NAME}.wire"]
    assert arm is not None
    for requests in args.requests:
        processor = processor_of(requests)
        run(processor, 50)
        took: dict[bool, list[int]] = {True: [], False: []}
        with tempfile.TemporaryDirectory() as directory:
            session = {
                "protocol": wire.PROTOCOL, "segments": 8, "segment_size": 1 << 20, "dir": directory, "id": "b",
                "mailboxes": directory,
            }  # fmt: skip
            for number in range(BLOCKS):
                recorded = number % 4 in (0, 3)
                agent = control.Agent(keep_hooks=False)
                if recorded:
                    agent.install()
                    agent.start(session)
                    run(processor, 20)
                took[recorded] += run(processor, STEPS)
                assert not agent.problem, agent.problem
                if recorded:
                    assert agent.writer.next_step >= STEPS
                    agent.stop("done")
                agent.leave()
        at = {side: sorted(values)[len(values) // 5] / 1e3 for side, values in took.items()}
        print(
            f"{requests} requests: a step's own {at[False]:.0f} us, with the hooks {at[True]:.0f} us: "
            f"{at[True] - at[False]:.0f} us more",
            flush=True,
        )


if __name__ == "__main__":
    main()
