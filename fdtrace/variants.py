"""`-w 'NAME: KEY=VALUE, …'` of the command line: one replay with a formula or a scheduler, and changed settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from fdtrace.formula_texts import LONGEST_NAME, LONGEST_TEXT, formula
from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.columns_on_demand import any_known
from fdtrace.scheduler_option import GivenScheduler, given_schedulers

if TYPE_CHECKING:
    from fdtrace.recorder.trace.recording import EngineInfo, Recording
    from fdtrace.replayer.config import Policy
    from fdtrace.replayer.formulas import Formula
    from fdtrace.replayer.recorded.step_durations import ClockKind
    from fdtrace.replayer.workload.closed_loop import ArrivalMode
    from fdtrace.replayer.workload.under_settings import ChangedSettings
    from fdtrace.replayer.workload.workload import Workload

ASSIGNED = re.compile(r"\s*([A-Za-z_]\w*)\s*=(?!=)")
OWN_KEYS = ("formula", "scheduler", "policy", "arrivals", "acceptances", "routing")
"""Keys of a variant that are no setting of the engine."""
EXAMPLE = "'seqs 64: max_num_seqs=64, formula=pr7499'"


@dataclass(frozen=True)
class Variant:
    """One replay: what schedules it, under which settings, and how requests arrive.

    If it names neither a formula nor a scheduler, the recorded one schedules it: `resolved_variant` adds that.
    """

    name: str
    text: str = ""
    """The text that was typed, for editing."""
    formula: Formula | None = None
    scheduler: GivenScheduler | None = None
    policy: Policy | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Changed settings as typed. `changed` reads them for one engine."""
    arrivals: str | None = None
    acceptances: str = "drawn"
    routing: str | None = None
    """How the ranks of a deployment get their requests; None: it replays one engine, or they get them as recorded."""

    def changed(self, engine: EngineInfo) -> ChangedSettings:
        """Its settings by the names of a recorded engine. UsageError if that engine has no such settings."""
        from fdtrace.replayer.workload.engine_settings import read_settings
        from fdtrace.replayer.workload.under_settings import ChangedSettings

        values = read_settings(engine, self.settings)
        return ChangedSettings(values, "drawn" if self.acceptances == "drawn" else "recorded")


def is_variant(text: str) -> bool:
    """Whether a text is a variant, and not a formula: it assigns something."""
    return ASSIGNED.match(_parts(text)[1]) is not None


def _parts(text: str) -> tuple[str, str]:
    """The name of a variant (empty if it has none), and the rest."""
    name, colon, rest = text.partition(":")
    return (name.strip(), rest) if colon and "=" not in name else ("", text)


def parse_variant(text: str, python: str) -> Variant:
    """The variant that `-w` gives; `python` runs the driver of a scheduler.

    Raises:
        UsageError: the text is no variant, or names something that does not exist.
    """
    if len(text) > LONGEST_TEXT:
        raise UsageError(
            f"a variant of {len(text)} characters is too long", why=f"at most {LONGEST_TEXT} are read"
        )
    name, rest = _parts(text)
    assigned: dict[str, str] = {}
    for part in _split(rest):
        match = ASSIGNED.match(part)
        if match is None:
            raise UsageError(f"{part.strip()!r} of a variant assigns nothing", hint=EXAMPLE)
        key = match[1]
        if key in assigned:
            raise UsageError(f"{key} is given twice in one variant")
        assigned[key] = part[match.end() :].strip()
        if not assigned[key]:
            raise UsageError(f"{key} has no value", hint=EXAMPLE)
    if not assigned:
        raise UsageError(f"{text.strip()!r} is no variant", why="it changes nothing", hint=EXAMPLE)
    return variant_of(name or rest.strip(), assigned, python, text.strip())


def variant_of(name: str, assigned: Mapping[str, Any], python: str, text: str = "") -> Variant:
    """The variant of a name, keys and values. UsageError as for `parse_variant`."""
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise UsageError(
            f"a variant cannot be called {name[:40]!r}",
            why=f"1 to {LONGEST_NAME} characters fit beside its figures",
        )
    variant = Variant(name, text or name)
    for key, value in assigned.items():
        if key in OWN_KEYS:
            variant = _with_own(variant, key, value, python)
    variant = _with_formula_in_scheduler(variant)
    return replace(variant, settings={key: value for key, value in assigned.items() if key not in OWN_KEYS})


def _with_formula_in_scheduler(variant: Variant) -> Variant:
    """If a variant has both a formula and a real scheduler, the formula gives that scheduler's budgets. UsageError."""
    if variant.formula is None or variant.scheduler is None:
        return variant
    return replace(variant, formula=None, scheduler=variant.scheduler.under(variant.formula))


def _with_own(variant: Variant, key: str, value: Any, python: str) -> Variant:
    if key == "scheduler":
        return replace(variant, scheduler=given_schedulers([str(value)], python)[0])
    if key == "formula":
        return replace(variant, formula=_formula(variant.name, value))
    if key == "policy":
        from fdtrace.replayer.config import parse_policy

        return replace(variant, policy=parse_policy(value) if isinstance(value, str) else value)
    if key == "acceptances":
        if value not in ("drawn", "recorded"):
            raise UsageError(f"acceptances={value} is neither drawn nor recorded")
        return replace(variant, acceptances=str(value))
    if key == "routing":
        return replace(variant, routing=str(value))
    return replace(variant, arrivals=str(value))


def _formula(name: str, value: Any) -> Formula:
    """A built-in name, FILE.py:CLASS, or an expression, which then has the variant's name."""
    from fdtrace.formula_texts import CLASS, as_formulas
    from fdtrace.replayer.formulas import BUILTIN

    if not isinstance(value, str):
        return as_formulas(value)[0]
    if value in BUILTIN or CLASS.match(value):
        return formula(value)
    plain = re.sub(r"\W", "_", name)
    return formula(f"{plain if plain[:1].isalpha() else f'_{plain}'}: {value}")


def _split(text: str) -> list[str]:
    """The parts between commas. Commas in brackets do not split."""
    parts, depth, begin = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth <= 0:
            parts.append(text[begin:at])
            begin = at + 1
    return [part for part in (*parts, text[begin:]) if part.strip()]


def refuse_equal_names(variants: Iterable[Variant]) -> None:
    """UsageError if two variants have the same name."""
    names: set[str] = {"recorded"}
    for variant in variants:
        if variant.name in names:
            why = "the recording's own" if variant.name == "recorded" else "given twice"
            raise UsageError(f"the name {variant.name!r} is {why}", hint=f"-w {EXAMPLE}")
        names.add(variant.name)


def refuse_routing(variant: Variant) -> None:
    """UsageError if a variant that replays one engine says how several get their requests."""
    if variant.routing is not None:
        raise UsageError(
            f"{variant.name} has a routing",
            why="this replays one engine",
            hint="`fdtrace replay TRACE --ranks` replays all ranks of a trace",
        )


def variants_of(
    formulas: Sequence[Formula], schedulers: Sequence[GivenScheduler], texts: Sequence[str]
) -> list[Variant]:
    """Formulas and schedulers that change no setting, with the texts that gave the formulas."""
    plain = [
        Variant(formula.name, text, formula=formula) for formula, text in zip(formulas, texts, strict=True)
    ]
    return [*plain, *(Variant(scheduler.name, "", scheduler=scheduler) for scheduler in schedulers)]


def resolved_variant(variant: Variant, recording: Recording, python: str) -> Variant:
    """The variant with what schedules it. If it names no scheduler, the one that was recorded does. UsageError."""
    from fdtrace.replayer.config import is_modelled

    refuse_routing(variant)
    if variant.scheduler is not None or (variant.formula is not None and is_modelled(recording.engine)):
        return variant
    return with_recorded_scheduler(variant, recording, python)


def with_recorded_scheduler(variant: Variant, recording: Recording, python: str) -> Variant:
    """The variant under what scheduled the recording: its formula, or the engine's own scheduler."""
    from fdtrace.replayer.analysis.fidelity import recorded_formula
    from fdtrace.replayer.config import is_modelled
    from fdtrace.replayer.formulas import BUILTIN

    if not is_modelled(recording.engine):
        (scheduler,) = given_schedulers([recording.engine.name], python)
        return _with_formula_in_scheduler(replace(variant, scheduler=scheduler))
    name = recorded_formula(recording)
    if name not in BUILTIN:
        raise UsageError(
            f"{variant.name} does not say by which formula",
            why="which one recorded is not known"
            if name is None
            else f"{name!r} recorded, which is not built in",
            hint=f"{variant.name}: formula=pr7499, …",
        )
    return replace(variant, formula=BUILTIN[name])


def coming_of(arrivals: str) -> tuple[ClockKind, ArrivalMode]:
    """What `--arrivals` or `arrivals=` means: steps, recorded, closed, rate=1.5x. UsageError."""
    from fdtrace.replayer.workload.closed_loop import AS_RECORDED, ArrivalMode

    plain: dict[str, tuple[ClockKind, ArrivalMode]] = {
        "steps": ("steps", AS_RECORDED),
        "recorded": ("time", AS_RECORDED),
        "time": ("time", AS_RECORDED),
        "closed": ("time", ArrivalMode(closed=True)),
    }
    if arrivals in plain:
        return plain[arrivals]
    match = re.fullmatch(r"rate\s*=\s*([0-9.]+)\s*x?", arrivals.strip())
    rate = float(match[1]) if match is not None and match[1].count(".") < 2 and match[1] != "." else 0.0
    if not 0.001 <= rate <= 1000:
        raise UsageError(
            f"arrivals {arrivals!r} are not known", hint="recorded (by time), steps, closed, or rate=1.5x"
        )
    return "time", ArrivalMode(rate=rate, closed=False)


def only_arrivals_of(recording: Recording) -> Literal["steps"] | None:
    """How requests must arrive if a recording has no times, as one of a simulation; None: it has times."""
    return "steps" if recording.num_steps and not any_known(recording.steps, "ts") else None


def coming_of_variant(variant: Variant, otherwise: str | None) -> tuple[ClockKind, ArrivalMode]:
    """How requests arrive under a variant: its own `arrivals`, else `otherwise`, else by time if settings change.

    By steps, slower steps would bring requests later. If the recording shows clients that wait for their answers,
    they wait in the replay too, unless `arrivals` says something else.
    """
    from fdtrace.replayer.workload.closed_loop import AS_FOUND, AS_RECORDED

    arrivals = otherwise if variant.arrivals is None else variant.arrivals
    if arrivals is not None:
        return coming_of(arrivals)
    return ("time", AS_FOUND) if variant.settings else ("steps", AS_RECORDED)


def clock_of_variant(variant: Variant, otherwise: str | None) -> ClockKind:
    """Whether requests arrive by step or by time under a variant."""
    return coming_of_variant(variant, otherwise)[0]


def refuse_as_recorded(
    schedulers: Sequence[GivenScheduler], variants: Sequence[Variant], clock: str | None
) -> None:
    """UsageError if `--as-recorded` comes with something that only a rescheduled replay has."""
    if schedulers:
        raise UsageError("--as-recorded asks formulas alone", why="a real scheduler has no other state")
    if clock not in (None, "steps"):
        raise UsageError("--as-recorded has no clock", why="each step keeps the requests that it had")
    if variants:
        raise UsageError("--as-recorded changes no setting", why="each step keeps the state that it had")


def engine_of(workload: Workload, name: str) -> EngineInfo:
    """The engine that would run a workload without a recording: one of its configuration."""
    from fdtrace.recorder.trace.recording import EngineInfo

    config = workload.config
    return EngineInfo(
        engine_id=0,
        name=name,
        version="",
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_num_seqs=config.max_num_seqs,
        num_speculative_tokens=config.num_speculative_tokens,
        block_size=config.block_size,
        num_blocks=config.num_blocks,
        max_model_len=config.max_model_len,
        spec_method=config.spec_method,
        chunked_prefill=config.chunked_prefill,
        prefix_caching=config.prefix_caching,
    )


def workload_of(workload: Workload, variant: Variant) -> Workload:
    """A workload under a variant's settings. With more drafts, requests accept what the workload gives.

    UsageError as for a recording.
    """
    from fdtrace.replayer.workload.under_settings import ChangedSettings, workload_under

    engine = engine_of(workload, "fastdeploy" if variant.scheduler is None else variant.scheduler.engine)
    return workload_under(workload, engine, ChangedSettings(variant.changed(engine).values, "recorded"))
