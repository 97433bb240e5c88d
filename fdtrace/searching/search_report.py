"""What a search found, as text and as JSON: the fault, the small case, the step's arithmetic, who else shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdtrace.recorder.errors import FdtraceError, UsageError

if TYPE_CHECKING:
    from fdtrace.replayer.search.draw_case import SearchCase
    from fdtrace.replayer.search.falsifier import SearchCoverage
    from fdtrace.replayer.search.findings import Finding
    from fdtrace.scheduler_option import GivenScheduler
    from fdtrace.searching.search_options import SearchPlan

WIDTH = 110


@dataclass
class FaultReport:
    """A fault with its smallest case, and what else is known about it."""

    name: str
    """What was searched."""
    finding: Finding
    case: SearchCase
    how: str
    """How it came to be: after how many runs, and how far it was shrunk."""
    account: list[str] = field(default_factory=list)
    also_under: dict[str, bool] = field(default_factory=dict)
    """Built-in formula -> whether it shows the same fault on the same case."""
    real: dict[str, str] = field(default_factory=dict)
    """Real scheduler -> what it does with the case."""
    faults_of_model: list[str] = field(default_factory=list)
    """The real schedulers that do not show it."""
    refused: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """For programs."""
        return {
            "name": self.name,
            "kind": self.finding.kind,
            "step": self.finding.step,
            "amount": self.finding.amount,
            "text": self.finding.text,
            "how": self.how,
            "case": self.case,
            "account": self.account,
            "also_under": self.also_under,
            "real": self.real,
            "not_shown_by": self.faults_of_model,
            "refused_by_fastdeploy": self.refused,
        }


def size_text(case: Mapping[str, Any]) -> str:
    """How large a case is."""
    requests = case["requests"]
    tokens = sum(request["prompt"] + request["output"] for request in requests)
    return f"{len(requests):,} request{'s' * (len(requests) != 1)} of {tokens:,} tokens"


def case_text(case: Mapping[str, Any]) -> str:
    """A case as JSON, with one request a line."""
    sizes = {key: value for key, value in case.items() if key != "requests"}
    requests = ",\n  ".join(json.dumps(request) for request in case["requests"])
    return f'{json.dumps(sizes)[:-1]}, "requests": [\n  {requests}\n]}}\n'


def save_case(path: Path, case: Mapping[str, Any]) -> None:
    """Write a case. UsageError if the path cannot be written."""
    try:
        path.write_text(case_text(case), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be written", why=error.strerror or str(error)) from None


def examine(found: FaultReport, searched: SearchPlan) -> None:
    """Add what is known of a found fault: the arithmetic, the other formulas, the real schedulers."""
    from fdtrace.replayer.config import ORIGINAL, POLICIES
    from fdtrace.replayer.formulas.builtin import MODEL_FORMULAS
    from fdtrace.replayer.search.finding_account import account_lines
    from fdtrace.replayer.workload.from_case import workload_from_case

    target = searched.target
    if searched.by is None:
        found.account = account_lines(found.case, found.finding, target.formula, target.policy)
        for name, formula in MODEL_FORMULAS.items():
            if name == target.formula.name:
                continue
            policy = ORIGINAL if formula.policy is None else POLICIES[formula.policy]
            other = replace(target, formula=formula, policy=policy, allow_refused=True)
            found.also_under[name] = other.same_as(found.case, found.finding)(found.case) is not None
        found.refused = target.refused(workload_from_case(found.case))
    for given in searched.confirm_by:
        confirm(found, given, searched)


def confirm(found: FaultReport, given: GivenScheduler, searched: SearchPlan) -> None:
    """Run the small case by an engine's real scheduler, and say what it does."""
    from fdtrace.replayer.workload.from_case import workload_from_case
    from fdtrace.searching.search_options import real_run

    finding = found.finding
    target = replace(searched.target, kinds=(finding.kind,), cause="")
    workload = workload_from_case(found.case)
    try:
        probed = real_run(given, workload, target)
    except UsageError as error:
        found.real[given.name] = f"refuses it: {error.what}"
        found.faults_of_model.append(given.name)
        return
    except FdtraceError as error:
        found.real[given.name] = f"could not be asked: {error.what}"
        return
    seen = probed.finding
    if seen is None and finding.kind == "withheld":
        found.real[given.name] = "does not say its budget, so it cannot show this"
    elif seen is None:
        found.real[given.name] = (
            f"does not show it in {probed.num_steps} steps: so this is a fault of the model, or of its version"
        )
        found.faults_of_model.append(given.name)
    elif seen.step == finding.step and seen.amount == finding.amount:
        found.real[given.name] = f"shows it too, at the same step: {seen.text}"
    else:
        found.real[given.name] = f"shows it too: {seen.text}"


def print_fault(found: FaultReport, option: str, path: Path | None) -> None:
    """Print a fault on stdout; the case too, if it goes into no file."""
    from fdtrace.recorder.printable import printable

    lines = [f"{found.name}: {found.finding.kind}, {found.how}", f"  {found.finding.text}"]
    lines += [f"    {line}" for line in found.account]
    shown = [name for name, shows in found.also_under.items() if shows]
    others = [name for name, shows in found.also_under.items() if not shows]
    if found.also_under:
        lines.append(f"  the same case under {', '.join(shown) or 'no other built-in formula'}: the same")
        lines += [f"  and under {', '.join(others)}: not"] if others and shown else []
    lines += [f"  FastDeploy refuses this: {text}" for text in found.refused]
    lines += [f"  {name} {text}" for name, text in found.real.items()]
    where = "SMALL.json" if path is None else str(path)
    lines.append(f"  to see it: fdtrace simulate {where} {option}")
    for line in lines:
        print(printable(line))
    if path is None:
        print(case_text(found.case), end="")


def print_covered(name: str, kinds: Sequence[str], covered: SearchCoverage, seconds: float) -> None:
    """Print what a search tried without a finding, and how near it came. That is no proof."""
    print(
        f"{name}: nothing found in {covered.num_runs:,} workloads ({covered.num_steps:,} steps, {seconds:.0f} s). "
        "That is no proof that there is nothing"
    )
    print(f"  looked for: {', '.join(kinds)}")
    sizes = ", ".join(f"{size} {least} to {most}" for size, (least, most) in covered.sizes.items())
    print(f"  sizes: {sizes}")
    print(
        f"  {covered.with_drafts:,} with speculation, {covered.with_preemptions:,} with preemptions, "
        f"{covered.out_of_blocks:,} without a free block in some step, {covered.num_cut:,} cut at the limit of steps; "
        f"{covered.num_refused:,} drawn and not run, since FastDeploy's checks refuse them"
    )
    near = ", ".join(f"{kind} {share:.0%}" for kind, share in covered.nearest.items() if kind in kinds)
    print(f"  nearest (100% would be a finding): {near or 'nothing'}")


def covered_figures(covered: SearchCoverage) -> dict[str, Any]:
    """What a search tried, for programs."""
    return dict(covered.__dict__)
