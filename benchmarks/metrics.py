"""What `--metrics` costs: CPU time of `fdtrace attach` with its collector, without it and with it, asked every second.

Both are attached, in turns, to one sandbox engine with a step every 10 ms, for longer than the minute of rows that a
scrape reads. Prometheus asks every 15 to 60 s by default, so the cost of one scrape is printed too.

    python benchmarks/metrics.py [--seconds 80] [--rounds 2]
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FDTRACE = [sys.executable, "-m", "fdtrace"]
EVERY = 1.0
"""Seconds between two scrapes."""


@contextmanager
def engine() -> Iterator[int]:
    """A sandbox engine that runs a step every 10 ms; its pid."""
    command = [*FDTRACE, "sandbox", "--requests", "1000000000", "--step-s", "0.01"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield int(line.removeprefix("ready"))
        finally:
            process.terminate()


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def scrape(port: int, ended: threading.Event, counts: list[int]) -> None:
    """Ask again and again. `counts` gets the steps of each answer."""
    while not ended.wait(EVERY):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
                text = answer.read().decode()
        except OSError:
            continue  # it does not listen yet, or not any more
        steps = re.search(r'^fdtrace_steps_total\{engine_id="0"\} (\S+)', text, re.MULTILINE)
        if steps is not None:
            counts.append(int(float(steps[1])))


def attach(pid: int, seconds: float, metrics: bool) -> tuple[float, int, int]:
    """CPU seconds of one attach and its collector, recorded steps, and answered scrapes."""
    with tempfile.TemporaryDirectory() as directory:
        trace, port = Path(directory) / "t.duckdb", free_port()
        command = [*FDTRACE, "attach", str(pid), "-o", str(trace), "--duration", str(seconds)]
        command += ["--metrics", str(port)] if metrics else []
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        ended, counts = threading.Event(), list[int]()
        asking = threading.Thread(target=scrape, args=(port, ended, counts))
        if metrics:
            asking.start()
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        ended.set()
        if metrics:
            asking.join()
        steps = re.search(r"^fdtrace: (\d+) steps in", said, re.MULTILINE)
        assert steps is not None, said
        assert process.returncode == 0, said
        return usage.ru_utime + usage.ru_stime, int(steps[1]), len(counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=80)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    print("CPU s a 1,000 steps: without --metrics   with it, asked every second   ratio   CPU ms a scrape")
    pairs = []
    with engine() as pid:
        for _ in range(options.rounds):
            cpu, steps, _ = attach(pid, options.seconds, metrics=False)
            alone = 1000 * cpu / steps
            cpu, steps, scrapes = attach(pid, options.seconds, metrics=True)
            both = 1000 * cpu / steps
            of_one = (both - alone) * steps / max(scrapes, 1)
            pairs.append((alone, both, both / alone, of_one))
            print(f"{alone:39.3f} {both:29.3f} {both / alone:7.2f} {of_one:17.1f}", flush=True)
    print("median" + f"{statistics.median(pair[2] for pair in pairs):71.2f}")


if __name__ == "__main__":
    main()
