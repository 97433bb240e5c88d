"""What recording costs a real `vllm serve`: throughput, inter-token latency and gaps, with and without, side by side.

    VLLM_PYTHON=… python benchmarks/vllm_recording.py [--pairs 20] [--seconds 8]

One load goes on all the time, and windows of it are recorded or not, in the order that cancels a drift: with, without,
without, with. Attaching and detaching lie outside the windows. Ratios are of recorded to not recorded: of throughput
the median over the pairs, with the range that holds it in 95 of 100 resamplings of the pairs; of latencies that of
all windows together, resampled likewise. `--null` records none, which says what this machine can tell apart.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from vllm_load import Answer, Background, largest_gap, percentile
from vllm_server import SPECULATION, Server, attach, detach, make_model, report

RESAMPLINGS = 500


@dataclass
class Window:
    """A part of the load: its begin and end (s), tokens a second, seconds between chunks of a request, and the longest
    time in which no chunk of any came.
    """

    begun: float
    ended: float
    recorded: bool
    tokens_per_s: float = 0.0
    gaps: list[float] = field(default_factory=list)
    largest_gap: float = 0.0

    def read(self, answers: list[Answer]) -> None:
        """Take what came in it from all answers."""
        tokens = 0
        for answer in answers:
            inside = [i for i, at in enumerate(answer.chunks) if self.begun <= at < self.ended]
            tokens += sum(answer.chunk_tokens[i] for i in inside)
            self.gaps += [answer.chunks[i] - answer.chunks[i - 1] for i in inside if i]
        self.tokens_per_s = tokens / (self.ended - self.begun)
        self.largest_gap = largest_gap(answers, self.begun, self.ended)


def seconds_of(process: psutil.Process) -> float:
    """Processor time of a process and its children, as far as they live."""
    family = [process, *process.children(recursive=True)]
    return sum(sum(member.cpu_times()[:2]) for member in family)


def windows(server: Server, directory: Path, args: argparse.Namespace) -> tuple[list[Window], float]:
    """The windows, still to be read, and the processor time that recording took beside the engine, of one processor."""
    found, took = [], 0.0
    order = [True, False, False, True] * -(-args.pairs // 2)
    for number, recorded in enumerate(order[: 2 * args.pairs]):
        process = None
        if recorded and not args.null:
            process = attach(server.pid, directory / f"{number}.duckdb")
        time.sleep(1.0)
        begun, before = time.perf_counter(), seconds_of(psutil.Process(process.pid)) if process else 0.0
        time.sleep(args.seconds)
        found.append(Window(begun, time.perf_counter(), recorded))
        if process:
            took += seconds_of(psutil.Process(process.pid)) - before
            detach(process)
            time.sleep(0.5)
    return found, took / (args.pairs * args.seconds)


def told(
    pairs: list[tuple[Window, Window]], ratio: Callable[[list[tuple[Window, Window]]], float]
) -> dict[str, float]:
    """A ratio, and the range that holds it in 95 of 100 resamplings of the pairs."""
    rng = random.Random(1)
    drawn = sorted(ratio(rng.choices(pairs, k=len(pairs))) for _ in range(RESAMPLINGS))
    return {"ratio": ratio(pairs), "from": percentile(drawn, 0.025), "to": percentile(drawn, 0.975)}


def throughput(pairs: list[tuple[Window, Window]]) -> float:
    """Recorded to not recorded, the median of the pairs."""
    return statistics.median(a.tokens_per_s / b.tokens_per_s for a, b in pairs)


def latency(share: float) -> Callable[[list[tuple[Window, Window]]], float]:
    """Of the inter-token latency that `share` of all gaps do not exceed."""

    def ratio(pairs: list[tuple[Window, Window]]) -> float:
        sides = (np.concatenate([window.gaps for window in side]) for side in zip(*pairs, strict=True))
        recorded, plain = (float(np.quantile(gaps, share)) for gaps in sides)
        return recorded / plain

    return ratio


def run(server: Server, directory: Path, args: argparse.Namespace) -> None:
    """Warm up, measure, print."""
    server.steady()
    Background(server.port, seconds=args.warm, concurrency=args.concurrency).join()
    load = Background(server.port, concurrency=args.concurrency, output=args.output, seed=7)
    time.sleep(3.0)
    found, share = windows(server, directory, args)
    answers = load.stop()
    for window in found:
        window.read(answers)
    both = [(a, b) if a.recorded else (b, a) for a, b in zip(found[::2], found[1::2], strict=True)]
    report("requests", {"all": len(answers), "failed": sum(bool(answer.error) for answer in answers)})
    for side, name in enumerate(("recorded", "not recorded")):
        mine = [pair[side] for pair in both]
        gaps = [gap for window in mine for gap in window.gaps]
        report(name, {
            "tokens_per_s": statistics.median(window.tokens_per_s for window in mine),
            "itl_p50_ms": 1e3 * percentile(gaps, 0.5), "itl_p99_ms": 1e3 * percentile(gaps, 0.99),
            "largest_gap_ms_median": 1e3 * statistics.median(window.largest_gap for window in mine),
            "largest_gap_ms": 1e3 * max(window.largest_gap for window in mine),
        })  # fmt: skip
    report("throughput", told(both, throughput))
    report("itl_p50", told(both, latency(0.5)))
    report("itl_p99", told(both, latency(0.99)))
    report("beside the engine", {"of_one_processor": share})


def main() -> None:
    """Run the windows and print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=8.0, help="of a window")
    parser.add_argument("--warm", type=float, default=30.0, help="seconds of load before them")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--output", type=int, default=96, help="tokens that every request makes")
    parser.add_argument("--layers", type=int, default=2, help="of the model: 2 take some 5 ms a step")
    parser.add_argument("--null", action="store_true", help="record nothing")
    parser.add_argument("--apart", action="store_true", help="the engine on a processor of its own")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with Server(make_model(directory / "model", args.layers), *SPECULATION, apart=args.apart) as server:
            server.wait()
            run(server, directory, args)


if __name__ == "__main__":
    main()
