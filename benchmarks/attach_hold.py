"""How long an attach holds a thread of the target, and how long it takes in all.

    python benchmarks/attach_hold.py [INJECTIONS]

Two targets: one that sleeps, and one whose threads fight for the GIL, wait, allocate and fork all at once.
The hold is of one thread; the others run on. On a busy machine it is mostly that thread waiting for a core.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fdtrace.recorder.inject import InjectionResult, run_in_process  # noqa: E402

PROGRAM = ROOT / "tests" / "inject" / "program.py"
TARGETS = {"idle": ["blocked", "sleep"], "tortured": ["tortured"]}


@contextlib.contextmanager
def target(mode: str, *arguments: str) -> Iterator[int]:
    """The pid of a running `program.py MODE`."""
    with tempfile.NamedTemporaryFile() as counters:
        counters.write(bytes(128))
        counters.flush()
        command = [sys.executable, "-W", "ignore", str(PROGRAM), mode, counters.name, *arguments]
        process = subprocess.Popen(command, stdin=subprocess.PIPE)
        try:
            while not Path(counters.name).read_bytes()[0]:
                time.sleep(0.01)
            yield process.pid
        finally:
            process.kill()
            process.communicate()


def measure(num: int) -> dict[str, list[InjectionResult]]:
    """Results of `num` injections into each target."""
    results: dict[str, list[InjectionResult]] = {}
    for name, (mode, *arguments) in TARGETS.items():
        with target(mode, *arguments) as pid:
            results[name] = []
            for done in range(num):
                results[name].append(run_in_process(pid, "result = 1", timeout=30))
                if (done + 1) % 50 == 0:
                    print(f"{name}: {done + 1} of {num}", file=sys.stderr, flush=True)
    return results


def row(label: str, values: list[float]) -> str:
    """min, median, p99 and max of `values`, in ms."""
    ordered = sorted(values)
    shown = [ordered[0], ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)], ordered[-1]]
    return f"{label:<18}" + "".join(f"{value:>10.2f}" for value in shown)


def main() -> None:
    num = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    results = measure(num)
    print(
        f"{num} injections each, ms" + "".join(f"{name:>10}" for name in ("min", "median", "p99", "max"))[4:]
    )
    columns: dict[str, Callable[[InjectionResult], float]] = {
        "held": lambda result: result.held_us / 1000,
        "total": lambda result: result.total_us / 1000,
    }
    for name, found in results.items():
        for label, value in columns.items():
            print(row(f"{name}, {label}", [value(result) for result in found]))


if __name__ == "__main__":
    main()
