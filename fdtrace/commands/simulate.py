"""Schedule a workload with no trace: reads a case in the lab's JSON format, writes one line of decisions a step.

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
    from fdtrace.replayer.replay.any_scheduler import AnyScheduler
    from fdtrace.replayer.workload.workload import Workload
    from fdtrace.simulation_result import Simulated
    from fdtrace.variants import Variant

MOST_NOTES = 8
"""Notes that are printed of one workload; of the rest, only the number."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace simulate`."""
    from fdtrace.scheduler_option import add_scheduler_arguments

    parser.add_argument("workload", type=Path, metavar="WORKLOAD.json", help="configuration and requests")
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
    from fdtrace.scheduler_option import given_schedulers
    from fdtrace.variants import parse_variant, refuse_equal_names, variants_of
    from fdtrace.workload_file import read_case

    if args.max_steps is not None and args.max_steps < 1:
        raise UsageError(f"--max-steps is {args.max_steps}", hint="1 or more")
    schedulers = given_schedulers(args.scheduler, args.scheduler_python)
    parsed = [parse_variant(text, args.scheduler_python) for text in args.variant or ()]
    formulas = _formulas(args, bool(schedulers or parsed))
    chosen = [
        *variants_of(formulas, schedulers, [formula.name for formula in formulas]),
        *map(_complete, parsed),
    ]
    refuse_equal_names(chosen)
    workload = workload_from_case(read_case(args.workload), max_steps=args.max_steps)
    outputs = _outputs(args, [variant.name for variant in chosen])
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
    chosen: Sequence[Variant],
    outputs: Sequence[Path | None],
) -> int:
    """Print what each run did. If one cannot run, the others are printed all the same, and its error last."""
    from fdtrace.simulation_result import print_json, print_table

    results: list[Simulated] = []
    errors: list[FdtraceError] = []
    for variant, path in zip(chosen, outputs, strict=True):
        try:
            with _output(path) as out:
                results.append(_simulate(workload, variant, args.policy, out))
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


@contextmanager
def _scheduler(
    workload: Workload, variant: Variant, policy_name: str | None
) -> Iterator[tuple[AnyScheduler, list[str]]]:
    """The scheduler, and what the FastDeploy version that the model follows would refuse of this workload."""
    from fdtrace.build_replays import policy_of
    from fdtrace.replayer.config import ORIGINAL
    from fdtrace.replayer.experiment import policy_with
    from fdtrace.replayer.model.scheduler import Scheduler
    from fdtrace.replayer.workload.startup_checks import refusals
    from fdtrace.variants import engine_of

    if variant.scheduler is not None:
        env = (workload.case or {}).get("env") or {}
        changed = variant.changed(engine_of(workload, variant.scheduler.engine)).values
        with variant.scheduler.open(workload.config, env, changed=changed) as driven:
            yield driven, []
    else:
        assert variant.formula is not None
        policy = variant.policy or policy_of(policy_name) or policy_with(variant.formula) or ORIGINAL
        refused = refusals(workload.config, variant.formula.name, policy, workload.requests)
        scheduler = Scheduler(workload.config, variant.formula, policy, explain=False)
        yield scheduler, [refusal.text for refusal in refused]


def _complete(variant: Variant) -> Variant:
    """The variant, checked: a workload has no recording that says what schedules it. UsageError."""
    if variant.arrivals is not None:
        raise UsageError(f"{variant.name} has arrivals", why="a workload says itself when its requests come")
    if variant.formula is None and variant.scheduler is None:
        raise UsageError(
            f"{variant.name} does not say by which formula", hint=f"-w '{variant.name}: formula=pr7499, …'"
        )
    return variant


def _simulate(workload: Workload, variant: Variant, policy: str | None, out: TextIO | None) -> Simulated:
    from fdtrace.replayer.model.state import SchedulerFailed
    from fdtrace.replayer.replay.simulation import Simulation, decision_line, golden_line
    from fdtrace.simulation_result import Simulated
    from fdtrace.variants import workload_of

    unchanged, workload = workload, workload_of(workload, variant)
    for note in workload.notes[len(unchanged.notes) :]:
        sys.stderr.write(f"fdtrace: {variant.name}: {note}\n")
    with _scheduler(workload, variant, policy) as (scheduler, refused):
        simulation = Simulation(workload, scheduler)
        simulated = Simulated(variant.name, simulation, refused)
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


def _outputs(args: argparse.Namespace, names: Sequence[str]) -> list[Path | None]:
    """The file of each run's decisions. UsageError if a file is the workload, or belongs to two runs."""
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
