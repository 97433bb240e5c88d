"""Schedule a workload with no trace: a case in the lab's JSON format in, one line of decisions a step out.

Under each formula with the policy of its time: `original`, `pr7438`, `pr7499` and `pr7623` with that of before release
2.6, `release_2_6` with its own; --policy chooses another. With --scheduler, the real code of a checkout decides. One
alone writes its decisions to stdout, or to --decisions; several are compared in a table, and --decisions then writes
one file each, with its name before the suffix.

With `"role": "prefill"` or `"decode"` the workload meets one instance of a deployment in roles: each request gets its
slot and blocks before it runs, joins `join_after` calls later (or, with `"discarded": true`, gives them back), and in
the prefill role is done `send_after` calls after its last chunk. Lines then hold these too.

Exit code 1: under one of them the workload hangs, or the limit of steps cut it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from fdtrace.recorder.errors import FdtraceError, UsageError

if TYPE_CHECKING:
    from fdtrace.replayer.formulas import Formula
    from fdtrace.replayer.replay.any_scheduler import AnyScheduler
    from fdtrace.replayer.workload.workload import Workload
    from fdtrace.schedulers import GivenScheduler
    from fdtrace.simulated import Simulated

MOST_NOTES = 8
"""Notes printed of one workload, before their number alone."""


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
    parser.add_argument(
        "--json", action="store_true", help="the figures of each as one JSON object, for machines"
    )
    parser.add_argument(
        "--max-steps",
        type=int,
        metavar="N",
        help="stop after N steps (default: the workload's `max_steps`, else as many as its requests can need)",
    )
    add_scheduler_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Simulate to the end of the workload, to a hang, or to the limit of steps; 1 for the last two."""
    from fdtrace.replayer.workload.from_case import workload_from_case
    from fdtrace.schedulers import given_schedulers
    from fdtrace.workload_file import read_case

    if args.max_steps is not None and args.max_steps < 1:
        raise UsageError(f"--max-steps is {args.max_steps}", hint="1 or more")
    given = given_schedulers(args.scheduler, args.scheduler_python)
    chosen: list[Formula | GivenScheduler] = [*_formulas(args, bool(given)), *given]
    workload = workload_from_case(read_case(args.workload), max_steps=args.max_steps)
    outputs = _outputs(args, [by.name for by in chosen])
    _say_notes(workload)
    if len(chosen) == 1 and not args.json:
        with _output(args.decisions or "-") as out:
            simulated = _simulate(workload, chosen[0], args.policy, out)
        _say_outcomes([simulated])
        return int(simulated.is_bad)
    return _compare(args, workload, chosen, outputs)


def _compare(
    args: argparse.Namespace,
    workload: Workload,
    chosen: Sequence[Formula | GivenScheduler],
    outputs: Sequence[Path | None],
) -> int:
    """Print what each did. Where one cannot be run, the others are printed all the same, and its error last."""
    from fdtrace.simulated import print_json, print_table

    results: list[Simulated] = []
    errors: list[FdtraceError] = []
    for by, path in zip(chosen, outputs, strict=True):
        try:
            with _output(path) as out:
                results.append(_simulate(workload, by, args.policy, out))
        except FdtraceError as error:
            errors.append(error)
    if args.json:
        print_json(workload, results, [str(error) for error in errors])
    elif results:
        print_table(results)
    _say_outcomes(results)
    for refused in errors[:-1]:
        sys.stderr.write(f"fdtrace: {refused}\n")
    if errors:
        raise errors[-1]
    return int(any(result.is_bad for result in results))


def _formulas(args: argparse.Namespace, beside: bool) -> list[Formula]:
    from fdtrace.formula_texts import formulas
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
) -> Iterator[tuple[AnyScheduler, list[str]]]:
    """The scheduler, and what FastDeploy would refuse of this workload: its version that the model follows."""
    from fdtrace.replayer.config import ORIGINAL
    from fdtrace.replayer.experiment import policy_with
    from fdtrace.replayer.model.scheduler import Scheduler
    from fdtrace.replayer.workload.startup_checks import refusals
    from fdtrace.replays import policy_of
    from fdtrace.schedulers import GivenScheduler

    if isinstance(by, GivenScheduler):
        env = (workload.case or {}).get("env") or {}
        with by.open(workload.config, env) as driven:
            yield driven, []
    else:
        policy = policy_of(policy_name) or policy_with(by) or ORIGINAL
        refused = refusals(workload.config, by.name, policy, workload.requests)
        yield Scheduler(workload.config, by, policy, explain=False), [refusal.text for refusal in refused]


def _simulate(
    workload: Workload, by: Formula | GivenScheduler, policy: str | None, out: TextIO | None
) -> Simulated:
    from fdtrace.replayer.model.state import SchedulerFailed
    from fdtrace.replayer.replay.simulation import Simulation, decision_line, golden_line
    from fdtrace.simulated import Simulated

    with _scheduler(workload, by, policy) as (scheduler, refused):
        simulation = Simulation(workload, scheduler)
        simulated = Simulated(by.name, simulation, refused)
        try:
            for step in simulation:
                simulated.add(step, json.dumps(golden_line(step)))
                if out is not None:
                    out.write(json.dumps(decision_line(step)) + "\n")
        except SchedulerFailed as failure:
            simulated.failure = f"fails at step {simulation.step}: {failure}"
    return simulated


def _say_notes(workload: Workload) -> None:
    if not workload.requests:
        sys.stderr.write("fdtrace: this workload has no requests: nothing is scheduled\n")
    for note in workload.notes[:MOST_NOTES]:
        sys.stderr.write(f"fdtrace: {note}\n")
    if len(workload.notes) > MOST_NOTES:
        sys.stderr.write(f"fdtrace: and {len(workload.notes) - MOST_NOTES} more notes of this kind\n")


def _say_outcomes(results: Sequence[Simulated]) -> None:
    """What no cell of the table holds: on stderr, each thing once."""
    refused: dict[str, list[str]] = {}
    for result in results:
        for text in result.refused:
            refused.setdefault(text, []).append(result.name)
    for text, names in refused.items():
        sys.stderr.write(f"fdtrace: FastDeploy refuses this under {', '.join(names)}: {text}\n")
    for result in results:
        if result.sentence:
            sys.stderr.write(f"fdtrace: {result.name} {result.sentence}\n")


def _outputs(args: argparse.Namespace, names: Sequence[str]) -> list[Path | None]:
    """The file of each one's decisions. UsageError where one is the workload, or that of two."""
    if args.decisions is None:
        return [None for _ in names]
    paths = [args.decisions]
    if len(names) > 1:
        paths = [args.decisions.with_stem(f"{args.decisions.stem}-{_plain(name)}") for name in names]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise UsageError(
                f"the decisions of {names[paths.index(path)]} and {names[i]} would both go to {path}",
                hint="give the formulas names that differ in letters or digits",
            )
        if _is_same_file(path, args.workload):
            raise UsageError(
                f"{path} is the workload itself",
                why="--decisions would overwrite it",
                hint="give another path",
            )
    return paths


def _is_same_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)


@contextmanager
def _output(path: Path | str | None) -> Iterator[TextIO | None]:
    """The file to write to: none, stdout for `-`."""
    if path is None or path == "-":
        yield sys.stdout if path else None
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "w", encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{path} cannot be written", why=error.strerror or str(error)) from None
        yield file
