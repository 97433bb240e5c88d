"""What `falsify` and `shrink` share on the command line: what is searched, for which faults, and near what."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdtrace.recorder.errors import UsageError

if TYPE_CHECKING:
    from fdtrace.drivers.children import DriverPool
    from fdtrace.replayer.config import Policy
    from fdtrace.replayer.formulas import Formula
    from fdtrace.replayer.search.falsifier import SearchTarget
    from fdtrace.replayer.search.probing import ProbeResult
    from fdtrace.replayer.workload.workload import Workload
    from fdtrace.scheduler_option import GivenScheduler

CASE_KEYS = {"num_gpu_blocks_override": "num_blocks", "enable_prefix_caching": "prefix_caching"}
"""Name of a setting -> its key in a case, where they differ."""


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of both commands."""
    from fdtrace.scheduler_option import add_scheduler_arguments

    parser.add_argument("-f", "--formula", metavar="FORMULA", help="as for `fdtrace replay`; one")
    parser.add_argument(
        "-w",
        "--variant",
        metavar="VARIANT",
        help="'NAME: formula=F, KEY=VALUE, …' in place of -f: these settings keep these values",
    )
    parser.add_argument(
        "--policy", metavar="P", help="scheduler version (default: that of the formula's time)"
    )
    parser.add_argument(
        "--cause",
        default="",
        metavar="TEXT",
        help="only faults whose sentence holds this text, as 'the budget is 0'",
    )
    parser.add_argument(
        "--starved-steps",
        type=int,
        default=100,
        metavar="N",
        help="starved: more than N steps in a row (100)",
    )
    parser.add_argument(
        "--preemptions",
        type=int,
        default=20,
        metavar="N",
        help="preempted: one request more than N times (20)",
    )
    parser.add_argument(
        "--withheld-steps",
        type=int,
        default=20,
        metavar="N",
        help="withheld: more than N steps in a row (20)",
    )
    parser.add_argument(
        "--allow-refused", action="store_true", help="also what FastDeploy's own checks would not let start"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="SMALL.json", help="the smallest case (default: stdout)"
    )
    add_scheduler_arguments(parser)
    parser.add_argument("--engine", type=int, metavar="N", help="which engine of a trace of several")


@dataclass(frozen=True)
class SearchPlan:
    """What a search runs: its target, the sizes that stay, and the real schedulers that confirm what it finds."""

    target: SearchTarget
    fixed: Mapping[str, Any]
    option: str
    """How the target is written on a command line, as `-f pr7499`."""
    confirm_by: tuple[GivenScheduler, ...] = ()
    by: GivenScheduler | None = None
    """The real scheduler that is searched itself; None: the model is."""

    @property
    def name(self) -> str:
        """Its name in what is printed."""
        return self.target.formula.name if self.by is None else self.by.name


def searched(args: argparse.Namespace, kinds: list[str] | None) -> SearchPlan:
    """What the options ask for. UsageError if they name nothing to search, or too much."""
    from fdtrace.build_replays import policy_of
    from fdtrace.formula_texts import formula
    from fdtrace.replayer.config import ORIGINAL
    from fdtrace.replayer.experiment import policy_with
    from fdtrace.replayer.formulas import BUILTIN
    from fdtrace.replayer.formulas.call_rules import MODEL_TAKES, refuse_rules
    from fdtrace.replayer.search.falsifier import SearchTarget
    from fdtrace.replayer.search.findings import FaultBounds, parse_kinds
    from fdtrace.scheduler_option import given_schedulers
    from fdtrace.variants import parse_variant

    if args.formula and args.variant:
        raise UsageError("both -f and -w are given", hint="-w 'NAME: formula=F, KEY=VALUE' holds both")
    chosen: Formula | None = formula(args.formula) if args.formula else None
    own_policy: Policy | None = None
    schedulers = given_schedulers(args.scheduler, args.scheduler_python)
    fixed: dict[str, Any] = {}
    option = f"-f {shlex.quote(args.formula)}" if args.formula else ""
    if args.variant:
        variant = parse_variant(args.variant, args.scheduler_python)
        chosen, own_policy = variant.formula, variant.policy
        schedulers += [variant.scheduler] if variant.scheduler is not None else []
        fixed = fixed_sizes(variant.settings)
        option = f"-f {shlex.quote(_formula_text(chosen, variant.text))}" if chosen is not None else ""
    by = None
    if chosen is None:
        if not schedulers:
            raise UsageError("no formula to search", hint="-f pr7499, or --scheduler vllm")
        by, *schedulers = schedulers
        chosen = BUILTIN["original"]
        option = f"--scheduler {args.scheduler[0] if args.scheduler else by.name}"
    if by is None:
        refuse_rules(
            chosen.name,
            chosen.rules,
            MODEL_TAKES,
            "the model of FastDeploy's scheduler",
            "FastDeploy has one budget",
        )
    policy = own_policy or policy_of(args.policy) or policy_with(chosen) or ORIGINAL
    if own_policy or args.policy:
        option += f" --policy {policy.name}"
    bounds = FaultBounds(args.starved_steps, args.preemptions, args.withheld_steps)
    target = SearchTarget(chosen, policy, parse_kinds(kinds), bounds, args.allow_refused, cause=args.cause)
    return SearchPlan(target, fixed, option, tuple(schedulers), by)


def _formula_text(formula: Formula, variant: str) -> str:
    """A formula of a variant as `-f` takes it."""
    from fdtrace.replayer.formulas import BUILTIN

    if formula.name in BUILTIN:
        return formula.name
    if formula.text:
        return f"{formula.name}: {formula.text}"
    match = re.search(r"\bformula\s*=\s*([^,]+)", variant)
    return match[1].strip() if match is not None else formula.name


def fixed_sizes(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A variant's settings by their keys in a case. UsageError as for a variant of a recording of FastDeploy."""
    from fdtrace.replayer.workload.engine_settings import read_settings
    from fdtrace.replayer.workload.from_case import workload_from_case
    from fdtrace.variants import engine_of

    smallest = {"max_num_batched_tokens": 64, "max_num_seqs": 1, "num_blocks": 9, "requests": []}
    values = read_settings(engine_of(workload_from_case(smallest), "fastdeploy"), settings)
    fixed: dict[str, Any] = {}
    env: dict[str, Any] = {}
    for name, value in values.items():
        if name.startswith("FD_"):
            env[name] = value
        elif name == "enable_chunked_prefill":
            env["FD_DISABLE_CHUNKED_PREFILL"] = int(not value)
        else:
            fixed[CASE_KEYS.get(name, name)] = value
    return {**fixed, "env": env} if env else fixed


@contextmanager
def by_real_scheduler(found: SearchPlan) -> Iterator[SearchPlan]:
    """The same with its real scheduler running behind it; without one, nothing changes."""
    from fdtrace.drivers.children import DriverPool

    if found.by is None:
        yield found
        return
    with _closing(DriverPool()) as children:
        given, target = found.by, found.target

        def run(workload: Workload) -> ProbeResult:
            if given.engine == "vllm" and not target.allow_refused:
                refuse_small_cache(workload)
            return real_run(given, workload, target, children)

        real = replace(target, run_by=run, allow_refused=target.allow_refused or given.engine != "fastdeploy")
        yield replace(found, target=real)


def refuse_small_cache(workload: Workload) -> None:
    """UsageError if the cache does not hold one request of max_model_len: a vLLM server would not start so.

    vLLM: `get_kv_cache_configs` (v1/core/kv_cache_utils.py); one block holds nothing.
    """
    config = workload.config
    needed = 1 + -(-config.max_model_len // config.block_size)
    if config.num_blocks < needed:
        raise UsageError(f"num_blocks {config.num_blocks} is less than {needed}", hint="more blocks")


@contextmanager
def _closing(children: DriverPool) -> Iterator[DriverPool]:
    try:
        yield children
    finally:
        children.close()


def real_run(
    given: GivenScheduler, workload: Workload, target: SearchTarget, children: DriverPool | None = None
) -> ProbeResult:
    """One run of a workload by an engine's real scheduler. UsageError if it refuses the configuration."""
    from fdtrace.replayer.search.probing import probe

    env = (workload.case or {}).get("env") or {}
    limit = None if workload.case is None or "max_steps" in workload.case else target.max_steps
    with given.open(workload.config, env, children=children) as driven:
        return probe(workload, driven, target.policy, target.kinds, target.bounds, max_steps=limit)


def base_case(path: Path, engine: int | None) -> tuple[dict[str, Any], list[str]]:
    """The case of a file: a case itself, or the workload of a trace. With it, what a case cannot say of the trace."""
    if is_case(path):
        from fdtrace.workload_file import read_case

        return dict(read_case(path)), []
    from fdtrace.recorder.trace.trace import open_trace
    from fdtrace.replayer.config import is_modelled
    from fdtrace.replayer.search.case_of_workload import as_case
    from fdtrace.replayer.workload.from_recording import workload_from_recording

    with open_trace(path) as trace:
        recording = trace.recording(engine)
        if not is_modelled(recording.engine):
            raise UsageError(
                f"{path} is a recording of {recording.engine.name}",
                why="its requests are no case of FastDeploy",
            )
        return as_case(workload_from_recording(recording))


def is_case(path: Path) -> bool:
    """Whether a file is a case or a request trace, by its first letters. UsageError if it cannot be read."""
    from fdtrace.request_traces.recognise import recognised_format

    try:
        with open(path, "rb") as file:
            if file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"{":
                return True
        return recognised_format(path) is not None
    except OSError as error:
        raise UsageError(f"{path} cannot be read", why=error.strerror or str(error)) from None
