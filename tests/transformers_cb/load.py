"""Runs transformers' continuous batching on a random model, and says what it did: `python load.py [OPTIONS]`, in an
environment that has transformers and PyTorch. It needs nothing of fdtrace.

It prints "ready PID" once it serves; at the end one JSON line: what the engine itself delivered and counted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
from typing import Any

VOCABULARY = 512


SIZES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": VOCABULARY},
    "1b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 4, "num_attention_heads": 32,
           "num_key_value_heads": 8, "vocab_size": 32000},
}  # fmt: skip
"""Models by name: `1b` has 1.1 billion weights, in few layers: a step is not all launches of small kernels."""


def random_model(size: str, layers: int = 0, device: str = "cpu") -> Any:
    """A random Llama with weights of a fixed seed; `layers` 0: as many as its size has."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    sizes = dict(SIZES[size])
    if layers:
        sizes["num_hidden_layers"] = layers
    kind = torch.float32 if device == "cpu" else torch.bfloat16
    config = LlamaConfig(**sizes, max_position_embeddings=4096, dtype=kind)
    there = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    with torch.device(device):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(there)
    model.set_attn_implementation("sdpa")
    return model


def configuration(options: argparse.Namespace) -> Any:
    """A `ContinuousBatchingConfig` of this version from the options."""
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    fields = ContinuousBatchingConfig.__dataclass_fields__
    given = {
        "page_size" if "page_size" in fields else "block_size": options.page_size,
        "num_blocks": options.blocks,
        "max_batch_tokens": options.batch_tokens,
        "scheduler_type": options.scheduler,
        "allow_block_sharing": options.prefixes > 0,
        "cpu_offload_space": options.offload_gib,
        "max_requests_per_batch": options.seqs,
        "use_async_batching": options.asynchronous,
        "use_cuda_graph": options.graphs or None,
        "safety_margin": options.margin,
        "auto_switch_to_flash": False,
    }
    return ContinuousBatchingConfig(**{name: value for name, value in given.items() if name in fields})


class Log:
    """The engine's own figures after each batch that it prepared, with what is in the batch: a line each."""

    def __init__(self, path: str) -> None:
        self.file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - open as long as the engine
        self.batch: list[list[Any]] = []

    def watch(self, scheduler_class: Any) -> Any:
        """The same scheduler, of which it is noted what a batch has in it."""
        log = self

        class Watched(scheduler_class):  # type: ignore[misc]
            def schedule_batch(self, *budgets: int) -> Any:
                result = super().schedule_batch(*budgets)
                log.batch = sorted(
                    [f.state.request_id, f.query_length, f.state.position_offset] for f in result[0] or ()
                )
                return result

        return Watched

    def watch_preparing(self, processor_class: Any) -> None:
        """Write a line where a batch is whole: requests may be offloaded for it after it was scheduled."""
        prepare = processor_class.prepare_next_batch

        def prepare_next_batch(processor: Any) -> bool:
            prepared = bool(prepare(processor))
            if prepared:
                self.write(processor.scheduler)
            return prepared

        processor_class.prepare_next_batch = prepare_next_batch

    def write(self, scheduler: Any) -> None:
        """One line."""
        cache = scheduler.cache
        if hasattr(cache, "get_num_free_blocks"):
            free = cache.get_num_free_blocks()
        else:
            free = round(cache.compute_free_capacity() * cache.num_blocks)
        line = {
            "running": len(scheduler.active_requests), "waiting": len(scheduler.waiting_requests_order), "free": free,
            "rows": self.batch,
        }  # fmt: skip
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()


class Timings:
    """When each forward and the update after it began and ended (ns), PyTorch's own allocator after the forward, and
    the processor time (ns) that the loop's thread had taken by then.
    """

    def __init__(self, path: str) -> None:
        self.file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - open as long as the engine

    def watch(self, processor_class: Any) -> None:
        """Around the two methods, outside whatever hooks them later."""
        forward, update = processor_class._generation_step, processor_class.update_batch
        line = [0] * 7

        def generation_step(processor: Any, model: Any) -> None:
            line[0] = time.time_ns()
            forward(processor, model)
            line[2:6] = allocator(processor.model_device)

        def update_batch(processor: Any) -> None:
            update(processor)
            line[1], line[6] = time.time_ns(), time.thread_time_ns()
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()

        processor_class._generation_step, processor_class.update_batch = generation_step, update_batch


def allocator(device: Any) -> list[int]:
    """Bytes allocated and reserved now and at most, by PyTorch's own functions; zeros on a CPU."""
    import torch

    if device.type != "cuda":
        return [0, 0, 0, 0]
    read = (
        torch.cuda.memory_allocated, torch.cuda.memory_reserved, torch.cuda.max_memory_allocated,
        torch.cuda.max_memory_reserved,
    )  # fmt: skip
    return [function(device) for function in read]


class Client:
    """Keeps `options.concurrency` requests under way, and checks what comes back."""

    def __init__(self, manager: Any, options: argparse.Namespace) -> None:
        self.manager, self.options = manager, options
        self.random = random.Random(options.seed)
        self.sent: dict[str, int] = {}
        self.answers: dict[str, tuple[int, int, bool]] = {}
        self.heads = [
            [self.random.randrange(3, VOCABULARY) for _ in range(options.shared)]
            for _ in range(options.prefixes)
        ]
        self.failed = 0
        self.until = time.monotonic() + options.seconds
        self.streamed: dict[str, int] = {}

    def send(self) -> None:
        """One request more."""
        low, high = self.options.prompt
        growing = len(self.sent) < self.options.growing
        if growing:
            low = high = low + (high - low) * len(self.sent) // self.options.growing
        head = self.random.choice(self.heads) if self.heads else []
        prompt = head + [self.random.randrange(3, VOCABULARY) for _ in range(self.random.randint(low, high))]
        output = 2 if growing else self.random.randint(*self.options.output)
        request_id = self.manager.add_request(prompt, max_new_tokens=output, streaming=True, eos_token_id=-1)
        self.sent[request_id] = output
        if self.options.cancel and self.random.random() < self.options.cancel:
            threading.Timer(0.05, self.manager.cancel_request, (request_id,)).start()

    def _check(self) -> None:
        """End this process if the generation loop has ended: nothing would come back any more."""
        if not self.manager.is_running():
            raise SystemExit("the generation loop ended under load")

    def run(self) -> None:
        """Until all are answered, or the time is over, or SIGTERM says that it is."""
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "until", 0.0))
        quiet = 0
        while len(self.sent) < self.options.requests and time.monotonic() < self.until:
            self._check()
            under_way = len(self.sent) - len(self.answers)
            alone = len(self.sent) < self.options.growing
            if under_way < (1 if alone else self.options.concurrency):
                self.send()
                continue
            if not self._take():
                quiet += 1
                if quiet > 20 and self.options.cancel:
                    break
            else:
                quiet = 0
        quiet = 0
        while len(self.answers) < len(self.sent) and quiet < (20 if self.options.cancel else 3000):
            quiet = 0 if self._take() else quiet + 1

    def _take(self) -> bool:
        result = self.manager.get_result(timeout=0.1)
        if result is None:
            return False
        self.streamed[result.request_id] = len(result.generated_tokens)
        if self.options.delivered:
            self._note_delivered()
        if result.is_finished():
            failed = result.error is not None
            self.answers[result.request_id] = len(result.prompt_ids), len(result.generated_tokens), failed
            self.failed += failed
        return True

    def _note_delivered(self) -> None:
        """Keep in a file how many tokens this client has been given, for whoever kills this process."""
        part = self.options.delivered + ".part"
        with open(part, "w", encoding="utf-8") as file:
            file.write(str(sum(self.streamed.values())))
        os.replace(part, self.options.delivered)  # whoever reads it never finds it empty

    def told(self) -> dict[str, Any]:
        """What came back."""
        return {
            "requests": len(self.sent), "answered": len(self.answers), "failed": self.failed,
            "prompt": sum(prompt for prompt, _, _ in self.answers.values()),
            "generated": sum(generated for _, generated, _ in self.answers.values()),
            "wrong": sum(n != self.sent[i] for i, (_, n, failed) in self.answers.items() if not failed),
        }  # fmt: skip


def pair(text: str) -> tuple[int, int]:
    """LOW:HIGH."""
    low, _, high = text.partition(":")
    return int(low), int(high or low)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--log", default="")
    add("--delivered", default="", help="a file that says how many tokens the client was given")
    add("--timings", default="", help="a file of the times of each step, and of the allocator after it")
    add("--model", choices=tuple(SIZES), default="tiny")
    add("--layers", type=int, default=0)
    add("--device", default="cpu")
    add("--memory-gib", type=float, default=0.0, help="of the device, that PyTorch may use (0: all)")
    add("--page-size", type=int, default=16)
    add("--blocks", type=int, default=64)
    add("--batch-tokens", type=int, default=64)
    add("--seqs", type=int, default=64)
    add("--scheduler", default="fifo")
    add("--margin", type=float)
    add("--prefixes", type=int, default=0)
    add("--shared", type=int, default=0)
    add("--offload-gib", type=float, default=0.0)
    add("--asynchronous", action="store_true", default=False)
    add("--graphs", action="store_true", help="run forwards in CUDA graphs")
    add("--requests", type=int, default=40)
    add("--concurrency", type=int, default=12)
    add("--seconds", type=float, default=600)
    add("--prompt", type=pair, default=(4, 90))
    add("--growing", type=int, default=0, help="first requests, one after another, each with a longer prompt")
    add("--output", type=pair, default=(4, 40))
    add("--cancel", type=float, default=0.0)
    add("--seed", type=int, default=1)
    add("--idle", type=float, default=0.0)
    add("--wait-for-stdin", action="store_true")
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace) -> None:
    """What is watched, and what stands in for a device that is not there."""
    import torch
    from transformers.generation.continuous_batching import continuous_api, scheduler

    torch.set_num_threads(1)
    if options.device == "cpu" and not torch.cuda.is_available():
        import on_cpu

        if options.offload_gib:
            on_cpu.offload()
        if options.asynchronous:
            on_cpu.asynchronous()
    if options.log:
        log = Log(options.log)
        log.watch_preparing(continuous_api.ContinuousBatchProcessor)
        for name, cls in list(scheduler.SCHEDULER_MAPPING.items()):
            scheduler.SCHEDULER_MAPPING[name] = log.watch(cls)
    if options.timings:
        Timings(options.timings).watch(continuous_api.ContinuousBatchProcessor)
    if options.memory_gib:
        share = options.memory_gib * 2**30 / torch.cuda.get_device_properties(options.device).total_memory
        torch.cuda.set_per_process_memory_fraction(share)


def main() -> None:
    """Serve, and say what was served."""
    options = parse()
    prepare(options)
    from transformers import GenerationConfig

    model = random_model(options.model, options.layers, options.device)
    generation = GenerationConfig(max_new_tokens=16, do_sample=False, eos_token_id=-1, pad_token_id=0)
    manager = model.init_continuous_batching(
        generation_config=generation, continuous_batching_config=configuration(options)
    )
    client = Client(manager, options)
    if options.asynchronous:  # 5.13's loop ends if there is no request when it begins
        client.send()
    manager.start()
    while manager.batch_processor is None:
        if not manager.is_running():
            raise SystemExit("the generation loop ended before it began")
        time.sleep(0.01)
    print("ready", os.getpid(), flush=True)
    if options.wait_for_stdin:
        sys.stdin.readline()
    time.sleep(options.idle)
    client.run()
    if options.wait_for_stdin:
        print("served", json.dumps(client.told()), flush=True)
        sys.stdin.readline()
    manager.stop(block=True)
    print(json.dumps(client.told()), flush=True)


if __name__ == "__main__":
    main()
