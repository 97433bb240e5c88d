"""Schedule a workload with no trace: a case in the lab's JSON format in, one line of decisions a step out.

Under each formula with the policy of its time: `original`, `pr7438`, `pr7499` and `pr7623` with that of before release
2.6, `release_2_6` with its own; --policy chooses another. With --scheduler, the real code of a checkout decides. One
alone writes its decisions to stdout, or to --decisions; several are compared in a table, and --decisions then writes
one file each, with its name before the suffix.

With `"role": "prefill"` or `"decode"` the workload meets one instance of a deployment in roles: each request gets its
slot and blocks before it runs, joins `join_after` calls later (or, with `"discarded": true`, gives them back), and in
the prefill role is done `send_after` calls after its last chunk. Lines then hold these too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from fdtrace.recorder.errors import FdtraceError, UsageError

if TYPE_CHECKING:
    from fdtrace.replayer.formulas import Formula
    from fdtrace.replayer.interface import AnyScheduler
    from fdtrace.replayer.simulation import Simulation
    from fdtrace.replayer.workload import Workload
    from fdtrace.schedulers import GivenScheduler


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace simulate`."""
    from fdtrace.schedulers import add_scheduler_arguments

    parser.add_argument("workload", type=Path, metavar="WORKLOAD.json", help="configuration and requests")
    parser.add_argument(
        "-f", "--formula", action="append", metavar="FORMULA", help="as for `fdtrace replay`; repeatable"
    )
    parser.add_argument(
        "--policy", metavar="P", help="scheduler version (default: that of the formula's time)"
    )
    parser.add_argument(
        "--decisions", type=Path, metavar="OUT.jsonl", help="write the decisions there, not to stdout"
    )
    add_scheduler_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Simulate to the end of the workload, or to its `max_steps`."""
    from fdtrace.replayer.workload import workload_from_case
    from fdtrace.schedulers import given_schedulers

    given = given_schedulers(args.scheduler, args.scheduler_python)
    chosen: list[Formula | GivenScheduler] = [*_formulas(args, bool(given)), *given]
    workload = workload_from_case(_read(args.workload))
    if len(chosen) == 1:
        with _output(args.decisions) as out:
            _simulate(workload, chosen[0], args.policy, out)
        return 0
    summaries = []
    for one in chosen:
        with ExitStack() as stack:
            path = args.decisions and args.decisions.with_stem(f"{args.decisions.stem}-{_plain(one.name)}")
            file = stack.enter_context(_output(path)) if path else None
            summaries.append(_simulate(workload, one, args.policy, file))
    _print_table(summaries)
    return 0


def _formulas(args: argparse.Namespace, beside: bool) -> list[Formula]:
    from fdtrace.formulas import formulas
    from fdtrace.replays import policy_of

    policy = policy_of(args.policy)
    if args.formula:
        return formulas(args.formula)
    if policy is not None:
        return formulas([policy.formula])
    if beside:
        return []
    raise UsageError(
        "no formula to schedule by", hint="-f pr7499, --scheduler fastdeploy=DIR, or --scheduler vllm"
    )


@contextmanager
def _scheduler(
    workload: Workload, by: Formula | GivenScheduler, policy_name: str | None
) -> Iterator[AnyScheduler]:
    from fdtrace.replayer.compare import policy_with
    from fdtrace.replayer.config import ORIGINAL
    from fdtrace.replayer.scheduler import Scheduler
    from fdtrace.replays import policy_of
    from fdtrace.schedulers import GivenScheduler

    if isinstance(by, GivenScheduler):
        env = (workload.case or {}).get("env", {})
        with by.open(workload.config, env) as driven:
            yield driven
    else:
        policy = policy_of(policy_name) or policy_with(by) or ORIGINAL
        yield Scheduler(workload.config, by, policy, explain=False)


class _Summary:
    """What one simulation did, and its lines, to tell where two depart from each other."""

    def __init__(self, name: str, limit: int) -> None:
        self.name, self.limit = name, limit
        self.lines: list[int] = []
        self.tokens: list[int] = []
        self.num_preempted = self.num_stalled = 0
        self.hang = ""

    def add(self, decided: dict[str, Any], line: str) -> None:
        """One step."""
        self.lines.append(hash(line))
        self.tokens.append(decided["tokens"])
        self.num_preempted += len(decided["preempted"])
        self.num_stalled += len(decided["stalled"])

    def departs_from(self, other: _Summary) -> int | None:
        """The first step that differs."""
        for step, (mine, theirs) in enumerate(zip(self.lines, other.lines, strict=False)):
            if mine != theirs:
                return step
        return None if len(self.lines) == len(other.lines) else min(len(self.lines), len(other.lines))

    def cells(self, first: _Summary) -> list[str]:
        """Its row of the table."""
        over = [n - self.limit for n in self.tokens if n > self.limit]
        step = None if first is self else self.departs_from(first)
        return [
            self.name,
            str(len(over)),
            f"+{max(over)}" if over else "-",
            str(max(self.tokens, default=0)),
            str(len(self.tokens)),
            str(self.num_preempted),
            str(self.num_stalled),
            "-" if first is self else "equal" if step is None else f"from step {step}",
        ]


def _simulate(
    workload: Workload, by: Formula | GivenScheduler, policy: str | None, out: TextIO | None
) -> _Summary:
    from fdtrace.replayer.simulation import Simulation, golden_line
    from fdtrace.replayer.state import SchedulerFailed

    summary = _Summary(by.name, workload.config.max_num_batched_tokens)
    with _scheduler(workload, by, policy) as scheduler:
        simulation = Simulation(workload, scheduler)
        try:
            for step in simulation:
                decided = golden_line(step)
                line = json.dumps(decided)
                summary.add(decided, line)
                if out is not None:
                    out.write(line + "\n")
        except SchedulerFailed as failure:
            raise FdtraceError(f"{by.name} fails at step {simulation.step}", why=str(failure)) from None
    _note_hang(simulation, summary)
    return summary


def _note_hang(simulation: Simulation, summary: _Summary) -> None:
    if simulation.hang is not None:
        hang = simulation.hang
        sys.stderr.write(f"fdtrace: {summary.name} hangs at step {hang.step}: {hang.cause}\n")


def _print_table(summaries: list[_Summary]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.ASCII if not sys.stdout.isatty() else box.SIMPLE_HEAD, show_edge=False)
    table.add_column("scheduler", overflow="fold")
    for name in ("over", "by", "peak", "steps", "preempted", "stalls", "departs"):
        table.add_column(name, justify="right")
    for summary in summaries:
        table.add_row(*summary.cells(summaries[0]))
    Console().print(table)


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path} cannot be read", why=error.strerror or str(error)) from None
    except ValueError as error:
        raise UsageError(f"{path} is no JSON", why=str(error)) from None


@contextmanager
def _output(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    try:
        file = path.open("w")
    except OSError as error:
        raise UsageError(f"{path} cannot be written", why=error.strerror or str(error)) from None
    with file:
        yield file
