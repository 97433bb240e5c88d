"""What a trace or a case must show under a formula: for `fdtrace check FILE.fdtrace.toml` and for pytest.

trace = "t.duckdb"                  # or: case = "small.json"; a path beside the file

[[expect]]
formula = "pr7499"                  # or: variant = "few: formula=pr7499, max_num_seqs=8"
max_exceeded = 0                    # steps over the limit (default 0)
hangs = false                       # whether it must hang, or be cut (default false)
max_preempted = 10                  # preemptions (default: any number)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdtrace.recorder.errors import UsageError

if TYPE_CHECKING:
    from fdtrace.formula_texts import FormulaLike
    from fdtrace.library.replaying import ReplayRun
    from fdtrace.variants import Variant

SUFFIX = ".fdtrace.toml"
SHAPE = 'trace = "t.duckdb" (or case = "small.json"), then [[expect]] with formula = "pr7499"'


@dataclass(frozen=True)
class ReplayExpectation:
    """One formula or variant on one trace or case, and what it may do at most."""

    source: Path
    formula: FormulaLike | None = None
    variant: str | None = None
    policy: str | None = None
    max_exceeded: int = 0
    max_preempted: int | None = None
    hangs: bool = False
    as_recorded: bool = False

    @property
    def name(self) -> str:
        """Its name as a test."""
        if self.variant is not None:
            return self.variant.partition(":")[0].strip() if ":" in self.variant else self.variant.strip()
        formula = self.formula
        return (
            formula.partition(":")[0]
            if isinstance(formula, str)
            else getattr(formula, "__name__", str(formula))
        )


@dataclass(frozen=True)
class ReplayVerdict:
    """What it did: the first line is its result, the others say why it failed."""

    expectation: ReplayExpectation
    failures: tuple[str, ...]
    lines: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether all that is expected holds."""
        return not self.failures

    @property
    def text(self) -> str:
        """The failures, and the lines that explain them."""
        return "\n".join((*self.failures, *(f"  {line}" for line in self.lines)))


@dataclass(frozen=True)
class _Figures:
    """What a replay or a simulation did, for both kinds of source."""

    num_steps: int
    num_exceeded: int
    max_excess: int
    num_preempted: int
    ended: str
    """Why it did not come to its end; empty: it did."""
    lines: tuple[str, ...]
    """The arithmetic of the first step over the limit, or of the hang."""


_KINDS: Mapping[str, tuple[type, ...]] = {
    "variant": (str,),
    "policy": (str,),
    "max_exceeded": (int,),
    "max_preempted": (int,),
    "hangs": (bool,),
    "as_recorded": (bool,),
}


def expectation_of(source: Path, values: Mapping[str, Any], where: str) -> ReplayExpectation:
    """An expectation of names and values. UsageError names what is wrong, and `where` it stands."""
    known = [field.name for field in fields(ReplayExpectation) if field.name != "source"]
    for key, value in values.items():
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f"{near[0]}?" if near else f"one of {', '.join(known)}"
            raise UsageError(f"{where}: there is no expectation `{key:.40}`", hint=hint)
        kinds = _KINDS.get(key)
        if kinds is not None and (not isinstance(value, kinds) or (bool not in kinds and value is True)):
            raise UsageError(f"{where}: `{key}` must be {kinds[0].__name__}, not {value!r:.40}")
        if kinds == (int,) and value < 0:
            raise UsageError(f"{where}: `{key}` is {value}", hint="0 or more")
    if (values.get("formula") is None) == (values.get("variant") is None):
        raise UsageError(f"{where}: it needs a formula or a variant, and not both", hint='formula = "pr7499"')
    return ReplayExpectation(source, **values)


def read_expectations(path: Path) -> list[ReplayExpectation]:
    """The expectations of a `*.fdtrace.toml`, in order. UsageError if it is none."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read", why=error.strerror or str(error)) from None
    except ValueError as error:  # no UTF-8, or no TOML
        raise UsageError(f"{path} is no TOML", why=str(error), hint=SHAPE) from None
    sources = [content.pop(key) for key in ("trace", "case") if key in content]
    entries = content.pop("expect", None)
    if len(sources) != 1 or not isinstance(sources[0], str):
        raise UsageError(f"{path} must name one trace or one case", hint=SHAPE)
    if content:
        raise UsageError(f"{path}: nobody reads `{next(iter(content)):.40}`", hint=SHAPE)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f"{path} expects nothing", why="it has no [[expect]]", hint=SHAPE)
    source = path.parent / sources[0]
    return [expectation_of(source, entry, f"{path}, [[expect]] {i + 1}") for i, entry in enumerate(entries)]


def verdict_of(expectation: ReplayExpectation) -> ReplayVerdict:
    """Replay or simulate, and compare with what is expected.

    Raises:
        FdtraceError: the source cannot be read, or cannot be replayed so.
    """
    from fdtrace.searching.search_options import is_case

    figures = _simulated(expectation) if is_case(expectation.source) else _replayed(expectation)
    return ReplayVerdict(expectation, tuple(_failures(expectation, figures)), figures.lines)


def _failures(expectation: ReplayExpectation, figures: _Figures) -> list[str]:
    found, name = [], expectation.name
    if figures.num_exceeded > expectation.max_exceeded:
        found.append(
            f"{name} exceeds the limit in {figures.num_exceeded} of {figures.num_steps} steps, by "
            f"{figures.max_excess} tokens at most; {expectation.max_exceeded} allowed"
        )
    most = expectation.max_preempted
    if most is not None and figures.num_preempted > most:
        found.append(f"{name} preempts {figures.num_preempted} times; {most} allowed")
    if bool(figures.ended) != expectation.hangs:
        found.append(
            f"{name} {figures.ended}"
            if figures.ended
            else f"{name} was expected to hang, and comes to its end"
        )
    return found


def _replayed(expectation: ReplayExpectation) -> _Figures:
    from fdtrace.library.replaying import replay

    formulas = None if expectation.formula is None else [expectation.formula]
    variants = () if expectation.variant is None else (expectation.variant,)
    runs = replay(
        expectation.source,
        formulas,
        variants=variants,
        policy=expectation.policy,
        as_recorded=expectation.as_recorded,
    )
    run = runs[next(name for name in runs if name != "recorded")]
    outcome = run.outcome
    return _Figures(
        outcome.num_steps,
        outcome.num_exceeded,
        outcome.max_excess,
        outcome.num_preemptions,
        outcome.why_not_done,
        tuple(_explained(run)),
    )


def _explained(run: ReplayRun) -> list[str]:
    """The first step over the limit, or the step at which it hangs, with its reasons."""
    outcome = run.outcome
    step = (
        int(run.exceeded["step"][0]) if outcome.num_exceeded else outcome.hang.step if outcome.hang else None
    )
    if step is None:
        return []
    try:
        return str(run.explain(step)).splitlines()
    except UsageError:  # it is not rescheduled by the model, which alone has reasons
        return [f"step {step}"]


def _simulated(expectation: ReplayExpectation) -> _Figures:
    from fdtrace.formula_texts import as_formulas
    from fdtrace.replayer.config import ORIGINAL, parse_policy
    from fdtrace.replayer.experiment import policy_with
    from fdtrace.replayer.model.state import SchedulerFailed
    from fdtrace.replayer.replay.simulation import Simulation
    from fdtrace.replayer.workload.from_case import workload_from_case
    from fdtrace.variants import Variant, parse_variant, workload_of
    from fdtrace.workload_file import read_case

    if expectation.as_recorded:
        raise UsageError(f"{expectation.name}: a case has no recorded steps", hint="leave out as_recorded")
    variant = (
        Variant("", formula=as_formulas(expectation.formula)[0])
        if expectation.variant is None
        else parse_variant(expectation.variant, sys.executable)
    )
    formula = _formula_of(expectation, variant)
    given = parse_policy(expectation.policy) if expectation.policy else None
    policy = variant.policy or given or policy_with(formula) or ORIGINAL
    workload = workload_of(workload_from_case(read_case(expectation.source)), variant)
    simulation = Simulation(workload, formula, policy, with_rows=False)
    limit, over, num_preempted, ended = workload.config.max_num_batched_tokens, [], 0, ""
    try:
        for step in simulation:
            over += (
                [(step.number, step.forward.num_tokens - limit)] if step.forward.num_tokens > limit else []
            )
            num_preempted += len(step.decision.preempted)
    except SchedulerFailed as failure:
        ended = f"fails at step {simulation.step}: {failure}"
    hang, cut = simulation.hang, simulation.cut
    ended = ended or (f"hangs at step {hang.step}: {hang.cause}" if hang else cut.text if cut else "")
    at = over[0][0] if over else hang.step if hang else None
    lines: list[str] = []
    if at is not None and not variant.settings:
        from fdtrace.replayer.search.finding_account import account_lines
        from fdtrace.replayer.search.findings import Finding

        lines = [
            f"step {at}:",
            *account_lines(workload.case or {}, Finding("exceeded", at, ""), formula, policy),
        ]
    largest = max((excess for _, excess in over), default=0)
    return _Figures(simulation.step, len(over), largest, num_preempted, ended, tuple(lines))


def _formula_of(expectation: ReplayExpectation, variant: Variant) -> Any:
    if variant.formula is None:
        raise UsageError(
            f"{expectation.name} does not say by which formula",
            hint="a case is scheduled by the model: formula=pr7499",
        )
    return variant.formula
