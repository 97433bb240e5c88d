"""An engine with the sandbox's surface and no model, for tests that start hundreds: only the forward is played.

    python played/engine.py [--steps N] [--seqs N] [--sleep S] [--log PATH] [--output N]

Its own log, a JSON line a step written after the step with one `write`, is what a recording must equal.
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
from types import SimpleNamespace
from typing import Any

from fdtrace.sandbox.runner import ModelRunner  # of the directory of this file
from fdtrace.sandbox.sandbox_scheduler import SandboxScheduler


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--seqs", type=int, default=16)
    parser.add_argument("--sleep", type=float, default=0.0)
    parser.add_argument("--log", default=os.devnull)
    parser.add_argument("--output", type=int, default=60)
    parser.add_argument(
        "--idle",
        default="",
        metavar="PATH",
        help="make no call while this file is there; PATH.seen then is too",
    )
    parser.add_argument(
        "--wrap", action="store_true", help="on SIGUSR1, wrap schedule() as another tool would"
    )
    parser.add_argument(
        "--fork", action="store_true", help="fork after 20 steps: both go on, the child with its own log"
    )
    return parser.parse_args()


class PlayedEngine:
    def __init__(self, options: argparse.Namespace) -> None:
        self.rng = random.Random(7)
        self.options = options
        self.config = SimpleNamespace(
            max_num_batched_tokens=4 * options.seqs,
            max_num_seqs=options.seqs,
            num_speculative_tokens=3,
            spec_method="ngram",
            block_size=16,
            num_blocks=2000,
            max_model_len=4096,
            chunked_prefill=True,
            prefix_caching=False,
            formula="original",
            policy="pr7499",
            seed=7,
            version="played",
            env={},
        )
        self.scheduler = SandboxScheduler(self.config)
        self.runner = ModelRunner(self.config, self.rng)
        self.made = 0
        self.log = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def start_over(self, log: str) -> None:
        """As a data-parallel rank that was forked: an engine of its own."""
        self.options.log = log
        self.__init__(self.options)  # type: ignore[misc]

    def step(self) -> None:
        scheduler, runner = self.scheduler, self.runner
        while len(scheduler.waiting) < 3:
            scheduler.add_request(
                SimpleNamespace(
                    request_id=f"r{self.made}",
                    slot=-1,
                    num_prompt_tokens=self.rng.randint(5, 90),
                    max_tokens=500,
                    num_computed_tokens=0,
                    num_output_tokens=0,
                    num_cached_tokens=0,
                    block_table=[],
                    wanted=self.rng.randint(2, self.options.output),
                )
            )
            self.made += 1
        scheduled = scheduler.schedule()
        if not runner.execute_model(scheduled, scheduler.running):
            return
        rows = []
        ends = {r.request_id: end for r, _, end in scheduled.prefills}
        for r in list(scheduler.running):
            tokens, emitted = runner.seq_lens_this_time[r.slot], runner.accept_num[r.slot]
            if not tokens:
                continue
            kind = "prefill" if r.request_id in ends else "decode"
            rows.append([r.request_id, kind, tokens, r.num_computed_tokens, len(r.block_table)])
            if kind == "prefill":
                r.num_computed_tokens += tokens
                if r.num_computed_tokens < r.num_prompt_tokens:
                    continue
                emitted = 1
            r.num_computed_tokens += emitted
            r.num_output_tokens += emitted
            if r.num_output_tokens >= r.wanted:
                scheduler.finish_request(r, "length")
        line = {"step": runner.step, "tokens": sum(runner.seq_lens_this_time), "rows": rows}
        os.write(self.log, (json.dumps(line) + "\n").encode())


def wrap_again() -> None:
    """What another tool does that patches the same method after us."""
    inner = SandboxScheduler.schedule

    def theirs(self: Any) -> Any:
        return inner(self)

    SandboxScheduler.schedule = theirs


def main() -> None:
    options = arguments()
    stop: list[Any] = []
    child = None
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    if options.wrap:
        signal.signal(signal.SIGUSR1, lambda *_: wrap_again())
    engine = PlayedEngine(options)
    print("ready", os.getpid(), flush=True)
    while not stop and (not options.steps or engine.runner.step + 1 < options.steps):
        if options.idle and os.path.exists(options.idle):
            open(options.idle + ".seen", "w").close()
            time.sleep(0.01)
            continue
        engine.step()
        if options.fork and engine.runner.step == 20:
            options.fork = False
            child = os.fork()
            if child == 0:
                engine.start_over(options.log + ".child")
        if options.sleep:
            time.sleep(options.sleep)
    if child:
        os.waitpid(child, 0)
    said = {
        "steps": engine.runner.step + 1,
        "hooked": hasattr(SandboxScheduler.schedule, "_fdtrace_hook"),
        "modules": sorted(name for name in sys.modules if "fdtrace_agent" in name),
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")),
    }
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
