"""Schedule a workload with no trace: reads a case or a request trace, writes one line of decisions a step.

Each formula runs with the policy of its time: `original`, `pr7438`, `pr7499` and `pr7623` with the policy from before
release 2.6, `release_2_6` with its own. --policy chooses another. With --scheduler, a checkout's code decides.
A single run writes its decisions to stdout, or to --decisions. Several runs are compared in a table, and --decisions
then writes one file for each, with the run's name before the suffix.

With `"role": "prefill"` or `"decode"` the workload runs on one instance of a deployment in roles. Each request gets its
slot and blocks before it runs. It joins `join_after` calls later or, with `"discarded": true`, gives them back. In the
prefill role it is done `send_after` calls after its last chunk. The lines then hold these events too.

Exit code 1: in one of the runs the workload hangs, or the limit of steps stopped it.
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
    from fdtrace.replayer.workload.workload import Workload
    from fdtrace.simulation_result import SimulationResult
    from fdtrace.variants import Variant

MOST_NOTES = 8
"""Notes that are printed of one workload; of the rest, only the number."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace simulate`."""
    from fdtrace.scheduler_option import add_scheduler_arguments
    from fdtrace.workload_options import add_workload_arguments

    parser.add_argument(
        "workload",
        type=Path,
        metavar="WORKLOAD",
        help="a case: configuration and requests; or a request trace, as of Mooncake (docs/workloads.md)",
    )
    parser.add_argument(
        "-f", "--formula", action="append", metavar="FORMULA", help="as for `fdtrace replay`; repeatable"
    )
    parser.add_argument(
        "-w",
        "--variant",
        action="append",
        metavar="VARIANT",
        help="'NAME: formula=F, KEY=VALUE, …': with changed settings of the workload, as for `fdtrace replay`; "
        "repeatable",
    )
    parser.add_argument(
        "--policy", metavar="P", help="scheduler version (default: that of the formula's time)"
    )
    parser.add_argument(
        "--decisions", type=Path, metavar="OUT.jsonl", help="write the decisions there, not to stdout"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="T.duckdb",
        help="write what was simulated as a trace, for replay, sql, check and info; of several runs one file each",
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
    add_workload_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Simulate to the end of the workload, to a hang, or to the limit of steps; 1 for the last two."""
    from fdtrace.recorder.write_trace import check_free
    from fdtrace.replayer.workload.from_case import workload_from_case
    from fdtrace.scheduler_option import given_schedulers
    from fdtrace.simulate_variant import checked_variant
    from fdtrace.simulated_trace import check_may_be_written
    from fdtrace.variants import parse_variant, refuse_equal_names, variants_of
    from fdtrace.workload_options import case_given

    if args.max_steps is not None and args.max_steps < 1:
        raise UsageError(f"--max-steps is {args.max_steps}", hint="1 or more")
    schedulers = given_schedulers(args.scheduler, args.scheduler_python)
    parsed = [parse_variant(text, args.scheduler_python) for text in args.variant or ()]
    formulas = _formulas(args, bool(schedulers or parsed))
    chosen = [
        *variants_of(formulas, schedulers, [formula.name for formula in formulas]),
        *map(checked_variant, parsed),
    ]
    refuse_equal_names(chosen)
    workload = workload_from_case(case_given(args.workload, args), max_steps=args.max_steps)
    names = [variant.name for variant in chosen]
    decisions = _outputs(args.decisions, "--decisions", names, args.workload)
    traces = _outputs(args.output, "-o", names, args.workload)
    for variant, trace in zip(chosen, traces, strict=True):
        if trace is not None:
            check_may_be_written(variant)
            check_free(trace)
    _say_notes(workload)
    to_stdout = len(chosen) == 1 and not args.json and args.decisions is None and args.output is None
    return _run(args, workload, chosen, ["-"] if to_stdout else decisions, traces)


def _run(
    args: argparse.Namespace,
    workload: Workload,
    chosen: Sequence[Variant],
    decisions: Sequence[Path | str | None],
    traces: Sequence[Path | None],
) -> int:
    """Print what each run did. If one cannot run, the others are printed all the same, and its error last."""
    from fdtrace.simulated_trace import write_simulated
    from fdtrace.simulation_result import print_json

    results: list[SimulationResult] = []
    errors: list[FdtraceError] = []
    for variant, lines, trace in zip(chosen, decisions, traces, strict=True):
        try:
            with _output(lines) as out:
                results.append(_simulate(workload, variant, args.policy, out))
            if trace is not None:
                write_simulated(trace, results[-1])
        except FdtraceError as error:
            errors.append(error)
    if args.json:
        print_json(workload, results, [str(error) for error in errors])
    elif results and workload.requests:
        _print_summary(results, sys.stderr if "-" in decisions else sys.stdout)
    _say_outcomes(results)
    for refused in errors[:-1]:
        sys.stderr.write(f"fdtrace: {refused}\n")
    if errors:
        raise errors[-1]
    return int(any(result.is_bad for result in results))


def _simulate(
    workload: Workload, variant: Variant, policy: str | None, out: TextIO | None
) -> SimulationResult:
    from fdtrace.build_replays import policy_of
    from fdtrace.replayer.replay.simulation import Step, decision_line
    from fdtrace.simulate_variant import simulate_variant

    def each(step: Step) -> None:
        if out is not None:
            out.write(json.dumps(decision_line(step)) + "\n")

    simulated = simulate_variant(workload, variant, policy_of(policy), each)
    for note in simulated.log.workload.notes[len(workload.notes) :]:
        sys.stderr.write(f"fdtrace: {variant.name}: {note}\n")
    return simulated


def _print_summary(results: Sequence[SimulationResult], out: TextIO) -> None:
    """Print the runs as a table, and who waited in them. The lines of decisions may have taken stdout."""
    from rich.console import Console

    from fdtrace.simulation_result import print_table
    from fdtrace.tui.report.wait_table import print_waits

    console = Console(file=out)
    print_table(results, console)
    print_waits([result.waits for result in results], console)


def _formulas(args: argparse.Namespace, optional: bool) -> list[Formula]:
    from fdtrace.build_replays import policy_of
    from fdtrace.formula_texts import formulas

    policy = policy_of(args.policy)
    if args.formula:
        return formulas(args.formula)
    if policy is not None:
        return formulas([policy.formula])
    if optional:
        return []
    raise UsageError(
        "no formula to schedule by", hint="-f pr7499, --scheduler fastdeploy=DIR, or --scheduler vllm"
    )


def _say_notes(workload: Workload) -> None:
    if not workload.requests:
        sys.stderr.write("fdtrace: this workload has no requests: nothing is scheduled\n")
    for note in workload.notes[:MOST_NOTES]:
        sys.stderr.write(f"fdtrace: {note}\n")
    if len(workload.notes) > MOST_NOTES:
        sys.stderr.write(f"fdtrace: and {len(workload.notes) - MOST_NOTES} more notes of this kind\n")


def _say_outcomes(results: Sequence[SimulationResult]) -> None:
    """Print on stderr what no cell of the table holds, each sentence once."""
    refused: dict[str, list[str]] = {}
    for result in results:
        for text in result.refused:
            refused.setdefault(text, []).append(result.name)
    for text, names in refused.items():
        sys.stderr.write(f"fdtrace: FastDeploy refuses this under {', '.join(names)}: {text}\n")
    for result in results:
        if result.sentence:
            sys.stderr.write(f"fdtrace: {result.name} {result.sentence}\n")


def _outputs(given: Path | None, option: str, names: Sequence[str], workload: Path) -> Sequence[Path | None]:
    """The file of each run under an option. UsageError if a file is the workload, or belongs to two runs."""
    if given is None:
        return [None for _ in names]
    paths = [given]
    if len(names) > 1:
        paths = [given.with_stem(f"{given.stem}-{_plain(name)}") for name in names]
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise UsageError(
                f"{names[paths.index(path)]} and {names[i]} would both go to {path}",
                why=f"{option} makes the file's name from the name of each",
                hint="give them names that differ in letters or digits",
            )
        if _is_same_file(path, workload):
            raise UsageError(
                f"{path} is the workload itself",
                why=f"{option} would overwrite it",
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
    """The file to write to; stdout for `-`, nothing for None."""
    if path is None or path == "-":
        yield sys.stdout if path else None
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "w", encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{path} cannot be written", why=error.strerror or str(error)) from None
        yield file
