"""What attaching does to a real `vllm serve` under load: how long it takes, the gaps between steps, what it leaves.

    VLLM_PYTHON=… python benchmarks/vllm_attach.py [--rounds 6] [--cycles 100]

The gaps are those between the chunks that all clients got, whoever they were for: the engine sends a step's tokens
when the step ends. Rounds with an attach and a detach in them and rounds without alternate. Then come the cycles:
attach, a second, detach, under load; and what the server's processes held before the first ten and after the last.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import vllm_load as load  # noqa: E402
from vllm_server import SPECULATION, Server, attach, attached_ms, detach, make_model, recorded, report  # noqa: E402

from recorder.attach import attach as enter  # noqa: E402
from recorder.attach import detach as leave  # noqa: E402
from recorder.session import Session  # noqa: E402


class Background:
    """A load in a thread."""

    def __init__(
        self, port: int, seconds: float, concurrency: int, seed: int, stop: threading.Event | None = None
    ) -> None:
        self.answers: list[load.Answer] = []
        options: dict[str, Any] = {"seconds": seconds, "concurrency": concurrency, "seed": seed, "stop": stop}
        self.thread = threading.Thread(
            target=lambda: self.answers.extend(asyncio.run(load.load(port, **options)))
        )
        self.thread.start()

    def join(self) -> list[load.Answer]:
        """Every answer."""
        self.thread.join()
        return self.answers


def largest_gap_ms(answers: list[load.Answer], begun: float, ended: float) -> float:
    """Between two chunks of any request, of those that came in a window of time."""
    chunks = sorted(time for answer in answers for time in answer.chunks if begun <= time <= ended)
    return 1e3 * max((b - a for a, b in itertools.pairwise(chunks)), default=0.0)


def settled(port: int) -> dict[str, int]:
    """The counters, when they no longer change."""
    counted = load.counters(port)
    while (again := (time.sleep(0.5), load.counters(port))[1]) != counted:
        counted = again
    return again


def one_round(server: Server, directory: Path, number: int, recording: bool) -> dict[str, Any]:
    """Ten seconds of load; with an attach and a detach in them, or not."""
    background = Background(server.port, 10.0, 8, number)
    time.sleep(2.0)
    begun, figures = time.perf_counter(), {}
    if recording:
        process = attach(server.pid, directory / f"{number}.duckdb")
        figures["attached_ms"] = attached_ms(process)
        time.sleep(2.0)
        detach(process)
    else:
        time.sleep(6.0)
    ended = time.perf_counter()
    answers = background.join()
    figures["largest_gap_ms"] = largest_gap_ms(answers, begun, ended)
    figures["failed"] = sum(bool(answer.error) for answer in answers)
    return figures


def held(server: Server) -> dict[str, int]:
    """Threads, descriptors, ring mappings and unique memory (MiB) of all the server's processes together."""
    tree = server.tree()
    return {
        "threads": sum(process.num_threads() for process in tree),
        "descriptors": sum(process.num_fds() for process in tree),
        "segments": sum(
            Path(f"/proc/{process.pid}/maps").read_text().count("fdtrace-rings") for process in tree
        ),
        "uss_mib": sum(process.memory_full_info().uss for process in tree) >> 20,
    }


def cycles(server: Server, directory: Path, count: int) -> None:
    """Attach and detach under load, again and again: what is done in the server's processes, without a collector."""
    stop = threading.Event()
    background = Background(server.port, 1e9, 4, 99, stop)
    took, states = [], []
    for number in range(count):
        if number % 10 == 0:
            states.append(held(server))
            report(f"cycle {number}", states[-1])
        session = Session.create(directory / f"cycle-{number}.duckdb", target=server.pid)
        begun = time.perf_counter()
        reached = enter(server.pid, session)
        took.append(1e3 * (time.perf_counter() - begun))
        assert len(reached) == 2, reached
        time.sleep(0.2)
        assert leave(session.id) == []
        session.remove_rings()
    stop.set()
    answers = background.join()
    states.append(held(server))
    report("cycles", {
        "count": count, "requests": len(answers), "failed": sum(bool(answer.error) for answer in answers),
        "attached_ms_median": statistics.median(took), "attached_ms_max": max(took),
        **{f"{name}_before": value for name, value in states[0].items()},
        **{f"{name}_after": value for name, value in states[-1].items()},
    })  # fmt: skip


def quiet(server: Server, directory: Path) -> None:
    """A recording over a whole load, beside the differences of the counters; the server is idle on both sides."""
    trace, before = directory / "quiet.duckdb", settled(server.port)
    process = attach(server.pid, trace)
    answers = Background(server.port, 10.0, 16, 7).join()
    after = settled(server.port)
    detach(process)
    report("counters", {name: after[name] - before[name] for name in after})
    report("recorded", recorded(trace))
    report("failed", {"requests": len(answers), "failed": sum(bool(answer.error) for answer in answers)})


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--cycles", type=int, default=100)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = make_model(directory / "model")
        with Server(model, "--num-gpu-blocks-override", "40", *SPECULATION) as server:
            server.wait()
            Background(server.port, 5.0, 8, 1).join()
            quiet(server, directory)
            for number in range(2 * args.rounds):
                recording = bool(number % 2)
                figures = one_round(server, directory, number, recording)
                report("with attach and detach" if recording else "without", figures)
            if args.cycles:
                cycles(server, directory, args.cycles)


if __name__ == "__main__":
    main()
