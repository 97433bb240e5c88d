"""What attaching does to a real `vllm serve` under load: how long it takes, the gaps between steps, what it leaves.

    VLLM_PYTHON=… python benchmarks/vllm_attach.py [--rounds 12] [--cycles 100]

The gaps are those between the chunks that all clients got, whoever they were for: the engine sends a step's tokens
when the step ends. Rounds with an attach and a detach in them and rounds without alternate, under one load. Then come
the cycles: attach, a fifth of a second, detach; what each of the server's processes holds is told every ten, and first
after as long a time without any: a server that has just started grows by itself.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from vllm_load import Background, largest_gap, settled  # noqa: E402
from vllm_server import SPECULATION, Server, attach, attached_ms, detach, make_model, recorded, report  # noqa: E402

from fdtrace.recorder.attach_server import attach as enter  # noqa: E402
from fdtrace.recorder.attach_server import detach as leave  # noqa: E402
from fdtrace.recorder.session import Session  # noqa: E402


def rounds(server: Server, directory: Path, args: argparse.Namespace) -> None:
    """Six seconds each; every other one has an attach in its second second and a detach in its fourth or fifth."""
    load = Background(server.port, concurrency=args.concurrency)
    spans: list[tuple[float, float]] = []
    took = []
    for number in range(2 * args.rounds):
        begun = time.perf_counter()
        time.sleep(1.0)
        if number % 2:
            process = attach(server.pid, directory / f"{number}.duckdb")
            took.append(attached_ms(process))
            time.sleep(2.0)
            detach(process)
        time.sleep(max(0.0, begun + 6.0 - time.perf_counter()))
        spans.append((begun, time.perf_counter()))
    answers = load.stop()
    gaps = [1e3 * largest_gap(answers, *span) for span in spans]
    for name, of in (("without", gaps[::2]), ("with attach and detach", gaps[1::2])):
        report(f"largest gap of each round, ms, {name}", {
            "median": statistics.median(of), "largest": max(of), "all": [round(gap) for gap in of],
        })  # fmt: skip
    report("attached, ms", {"median": statistics.median(took), "longest": max(took)})
    report("requests", {"all": len(answers), "failed": sum(bool(answer.error) for answer in answers)})


def held(server: Server) -> dict[str, dict[str, Any]]:
    """Threads, descriptors, ring mappings and unique memory (KiB) of each of the server's processes."""
    return {
        f"{process.name()} {process.pid}": {
            "threads": process.num_threads(),
            "descriptors": process.num_fds(),
            "rings": Path(f"/proc/{process.pid}/maps").read_text().count("fdtrace-rings"),
            "uss_kib": process.memory_full_info().uss >> 10,
        }
        for process in server.tree()
    }


def grown(name: str, before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]]) -> None:
    """Tell what each process has more than before."""
    for process, figures in before.items():
        more = {key: after[process][key] - value for key, value in figures.items()}
        report(f"{name}, {process}, more than before", more)


def cycles(server: Server, directory: Path, args: argparse.Namespace) -> None:
    """Attach and detach under load, again and again: what is done in the server's processes, without a collector."""
    load = Background(server.port, concurrency=args.concurrency, seed=99)
    time.sleep(2.0)
    first = held(server)
    time.sleep(0.5 * args.cycles)
    before = held(server)
    grown("as long without", first, before)
    took = []
    for number in range(args.cycles):
        session = Session.create(directory / f"cycle-{number}.duckdb", target=server.pid)
        begun = time.perf_counter()
        enter(server.pid, session)
        took.append(1e3 * (time.perf_counter() - begun))
        time.sleep(0.2)
        assert leave(session.id) == []
        session.remove_rings()
        if number % 10 == 9:
            grown(f"after {number + 1} cycles", before, held(server))
    answers = load.stop()
    report("attached, ms", {"median": statistics.median(took), "longest": max(took)})
    report("requests", {"all": len(answers), "failed": sum(bool(answer.error) for answer in answers)})
    settled(server.port)
    grown("idle in the end", before, held(server))


def quiet(server: Server, directory: Path, args: argparse.Namespace) -> None:
    """A recording over a whole load, beside the differences of the counters; the server is idle on both sides."""
    trace, before = directory / "quiet.duckdb", settled(server.port)
    process = attach(server.pid, trace)
    answers = Background(server.port, seconds=10.0, concurrency=args.concurrency, seed=7).join()
    after = settled(server.port)
    detach(process)
    report("counters", {name: after[name] - before[name] for name in after})
    report("recorded", recorded(trace))
    report("requests", {"all": len(answers), "failed": sum(bool(answer.error) for answer in answers)})


def main() -> None:
    """Run all of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--warm", type=float, default=20.0, help="seconds of load before all of it")
    parser.add_argument("--apart", action="store_true", help="the engine on a processor of its own")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        options = ("--num-gpu-blocks-override", "40", *SPECULATION)
        with Server(make_model(directory / "model"), *options, apart=args.apart) as server:
            server.wait()
            server.steady()
            Background(server.port, seconds=args.warm, concurrency=args.concurrency).join()
            quiet(server, directory, args)
            if args.rounds:
                rounds(server, directory, args)
            if args.cycles:
                cycles(server, directory, args)


if __name__ == "__main__":
    main()
