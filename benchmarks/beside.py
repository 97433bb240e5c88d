"""Two checkouts of fdtrace side by side in one run: what became slower or faster, as a table for docs/performance.md.

    python benchmarks/beside.py OTHER [--rounds 3] [--only hook …] [--trace T]

OTHER is another checkout with an environment of its own (`make .venv/.installed` in it). Each round runs each benchmark
of both checkouts, one after the other and in the other order in every second round, so that both meet the same
disturbances. A figure is the median over the rounds; a ratio below 1 is faster (for a rate: above 1). Below the table
stands what became slower or faster: the figures that did so in each round of one checkout against each of the other's.
`make bench-beside` makes the other checkout, of the commit BEFORE, and compares this one with it. `start` opens
the trace T with `fdtrace info`; without --trace, OTHER records one of its sandbox first.

`fastdeploy` needs FASTDEPLOY_SRC, LAB_DIR and FASTDEPLOY_PYTHON (see fastdeploy_hook.py). It measures both checkouts in
one process.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

Figures = dict[str, float]
"""The name of each figure, with its unit -> its value."""

RATE = "(steps a CPU s)"
"""In the name of a figure of which more is better."""

STARTS = 5
"""Starts of a command in a round."""


def output_of(checkout: Path, *command: str) -> str:
    """What a command of a checkout prints, run by the checkout's own Python."""
    done = subprocess.run(
        [checkout / ".venv" / "bin" / "python", *command],
        cwd=checkout,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def numbers(text: str, line: str) -> Iterator[list[float]]:
    """The numbers behind `line` (a regular expression) in each line of `text` that has it."""
    for match in re.finditer(rf"^ *{line}(.*)$", text, re.MULTILINE):
        yield [
            float(number.replace(",", ""))
            for number in re.findall(r"-?\d[\d,]*\.?\d*", match.group(match.lastindex or 0))
        ]


def hook(checkout: Path, options: argparse.Namespace) -> Figures:
    """What the hook adds to a step of the sandbox. This checkout's benchmark measures both agents."""
    text = output_of(checkout, str(ROOT / "benchmarks" / "hook.py"), "--steps", "1000")
    figures = {}
    for count in (1, 32, 128, 256):
        warm, _, cold, _ = next(numbers(text, f"{count} "))
        figures[f"hook, {count} requests, warm (us a step)"] = warm
        figures[f"hook, {count} requests, cold (us a step)"] = cold
    return figures


def collector(checkout: Path, options: argparse.Namespace) -> Figures:
    """What the collector takes for its rows, and what the final file takes."""
    text = output_of(checkout, "benchmarks/collector.py", "--steps", "8000")
    figures = {}
    for every in (2000, 100):
        reading, ending, *_ = next(numbers(text, f"published every +{every} steps"))
        figures[f"collector, published every {every} steps (CPU s a million rows)"] = reading
        figures["collector, the final file (CPU s a million rows)"] = ending
    return figures


def start(checkout: Path, options: argparse.Namespace) -> Figures:
    """CPU seconds of short commands, from their start to their end."""
    commands = {"fdtrace --help": ("--help",), "fdtrace info": ("info", str(options.trace))}
    return {
        f"{name} (CPU s)": statistics.median(_cpu(checkout, *command) for _ in range(STARTS))
        for name, command in commands.items()
    }


def _cpu(checkout: Path, *command: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output_of(checkout, "-m", "fdtrace", *command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def screen(checkout: Path, options: argparse.Namespace) -> Figures:
    """The replay screen on a million steps: its start, a key, and the CPU that a key takes."""
    text = output_of(checkout, "benchmarks/screen.py", "--keys", "12")
    figures = {
        "screen, Python and imports (s)": next(numbers(text, "start of Python and imports"))[0],
        "screen, first screen with all panes (s)": next(numbers(text, "first screen, all panes"))[0],
    }
    for name, line in (("a step", r"step \(l\), everything in sight"), ("zoom", r"zoom in and out \(w, s\)")):
        median, _, _, cpu, _ = next(numbers(text, line))
        figures[f"screen, a key: {name} (ms)"] = median
        figures[f"screen, a key: {name} (CPU ms)"] = cpu
    return figures


def reschedule(checkout: Path, options: argparse.Namespace) -> Figures:
    """Rescheduling at 128 running requests."""
    text = output_of(checkout, "benchmarks/reschedule.py", "--one", "--steps", "10000", "--formula", "pr7499")
    return {f"rescheduling, 128 requests {RATE}": float(json.loads(text.splitlines()[0])["steps_per_s"])}


BENCHMARKS: dict[str, Callable[[Path, argparse.Namespace], Figures]] = {
    "hook": hook,
    "collector": collector,
    "start": start,
    "screen": screen,
    "reschedule": reschedule,
}


def fastdeploy(options: argparse.Namespace) -> tuple[Figures, Figures]:
    """What the hooks add to FastDeploy's `schedule()`, of the other checkout and of this one, in one process."""
    command = [
        os.environ["FASTDEPLOY_PYTHON"],
        str(ROOT / "benchmarks" / "fastdeploy_hook.py"),
        "--steps",
        "400",
    ]
    done = subprocess.run(
        [*command, "--beside", str(options.other)], stdout=subprocess.PIPE, text=True, check=True
    )
    figures: tuple[Figures, Figures] = ({}, {})
    for which, name in enumerate(("beside", "this")):
        for count, _, _, _, added, _, _, size in numbers(done.stdout, f"schedule +{name} "):
            figures[which][f"FastDeploy's schedule(), {count:.0f} requests (us added)"] = added
            figures[which][f"FastDeploy, {count:.0f} requests, in the ring (bytes a step)"] = size
    return figures


def measure(options: argparse.Namespace) -> Iterator[tuple[str, list[float], list[float]]]:
    """Each figure with its values in the other checkout and in this one."""
    values: dict[str, tuple[list[float], list[float]]] = {}
    for number in range(options.rounds):
        for name in options.only:
            if name == "fastdeploy":
                both = fastdeploy(options)
            else:
                order = (options.other, ROOT) if number % 2 == 0 else (ROOT, options.other)
                first, second = (BENCHMARKS[name](checkout, options) for checkout in order)
                both = (first, second) if number % 2 == 0 else (second, first)
            for which, figures in enumerate(both):
                for figure, value in figures.items():
                    values.setdefault(figure, ([], []))[which].append(value)
    for figure, (before, now) in values.items():
        yield figure, before, now


def change(figure: str, before: Sequence[float], now: Sequence[float]) -> str:
    """What became of a figure: `slower` or `faster` if each round of one checkout says so against each of the other's;
    else empty: it cannot be told from the noise. A single round of each cannot tell.
    """
    if min(len(before), len(now)) < 2:
        return ""
    if RATE in figure:
        before, now = now, before
    if min(now) > max(before):
        return "slower"
    return "faster" if max(now) < min(before) else ""


def main() -> None:
    """Print the table, and what became slower or faster."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("other", type=Path, metavar="OTHER", help="another checkout of fdtrace")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=[*BENCHMARKS, "fastdeploy"], default=list(BENCHMARKS))
    parser.add_argument(
        "--trace", type=Path, help="the trace that `start` opens; both checkouts must read it"
    )
    options = parser.parse_args()
    options.other = options.other.resolve()
    with tempfile.TemporaryDirectory() as directory:
        if options.trace is None and "start" in options.only:
            options.trace = Path(directory) / "t.duckdb"
            sandbox = ("-m", "fdtrace", "sandbox", "--steps", "300")
            python = str(options.other / ".venv" / "bin" / "python")
            output_of(
                options.other, "-m", "fdtrace", "record", "-o", str(options.trace), "--", python, *sandbox
            )
        print("| figure | before | now | ratio |\n|---|---|---|---|")
        changes: dict[str, list[str]] = {"slower": [], "faster": [], "": []}
        for figure, before, now in measure(options):
            changes[change(figure, before, now)].append(figure)
            middle = [statistics.median(values) for values in (before, now)]
            print(
                f"| {figure} | {middle[0]:,.4g} | {middle[1]:,.4g} | {middle[1] / middle[0]:.2f} |",
                flush=True,
            )
        print()
        for what in ("slower", "faster"):
            print(f"{what} in all rounds: {'; '.join(changes[what]) or 'nothing'}")


if __name__ == "__main__":
    main()
