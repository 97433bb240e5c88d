"""The replays of `fdtrace.replay`: each variant with its settings, and the processes of engines' schedulers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

from fdtrace.drivers.children import Children
from fdtrace.formula_texts import DEFAULT, FormulaLike, as_formulas
from fdtrace.library.engine_recording import RowsInMemory
from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer import Experiment, History, Policy
from fdtrace.replayer.analysis.token_times import parse_slo
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns
from fdtrace.replayer.recorded.recorded_timing import RecordedTiming
from fdtrace.variants import (
    Variant,
    clock_of_variant,
    coming_of_variant,
    refuse_equal_names,
    variant,
    variant_of,
    variants_of,
    with_what_recorded,
)

VariantsLike = str | Sequence[str] | Mapping[str, Mapping[str, Any]]
"""Texts as `-w` takes them, or by name a mapping of settings."""


def chosen_variants(
    recording: Recording,
    formulas: FormulaLike | Sequence[FormulaLike] | None,
    variants: VariantsLike,
    python: str,
) -> list[Variant]:
    """What is to be replayed, in order: formulas, then variants, each with what schedules it.

    Raises:
        UsageError: one is none, or two have one name.
    """
    if isinstance(variants, Mapping):
        told = [variant_of(name, given, python) for name, given in variants.items()]
    else:
        told = [variant(text, python) for text in ([variants] if isinstance(variants, str) else variants)]
    plain = as_formulas(formulas if formulas is not None else () if told else DEFAULT)
    complete = [
        one
        if one.formula is not None or one.scheduler is not None
        else with_what_recorded(one, recording, python)
        for one in told
    ]
    chosen = [*variants_of(plain, [], [one.name for one in plain]), *complete]
    refuse_equal_names(chosen)
    for one in chosen:
        one.changed(recording.engine)
        if one.scheduler is not None:
            one.scheduler.refuse_others(recording)
    return chosen


class VariantReplayer(AbstractContextManager["VariantReplayer"]):
    """Replays variants of one recording; the time model and the fit of memory are made once."""

    def __init__(
        self,
        recording: Recording,
        chosen: Sequence[Variant],
        clock: Literal["steps", "time"] | None,
        device_bytes: int | None,
        slo: str | None,
    ) -> None:
        self.recording, self.clock, self.device_bytes = recording, clock, device_bytes
        self.slo = parse_slo(slo)
        timed = bool(self.slo) or any(clock_of_variant(one, clock) == "time" for one in chosen)
        self.timing = RecordedTiming(recording, self._batches) if timed else None
        self.children = Children()
        self._experiments: dict[str, Experiment] = {}

    def _batches(self) -> BatchRowColumns | None:
        rows = self.recording.details.step_rows
        return rows.batches(self.recording) if isinstance(rows, RowsInMemory) else None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.children.close()

    def experiment(self, one: Variant) -> Experiment:
        """The recording under a variant's settings."""
        if one.name not in self._experiments:
            (clock, coming), changed = coming_of_variant(one, self.clock), one.changed(self.recording.engine)
            self._experiments[one.name] = Experiment(
                self.recording, None, clock, self.device_bytes, changed, self.timing, self.slo, coming
            )
        return self._experiments[one.name]

    def recorded(self) -> History:
        """The recording itself."""
        return Experiment(
            self.recording, None, "steps", self.device_bytes, timing=self.timing, slo=self.slo
        ).recorded()

    def as_recorded(self, one: Variant) -> History:
        """Every step in the state that it had. UsageError where the variant changes more than the formula."""
        if one.formula is None or one.settings:
            raise UsageError(
                f"{one.name} cannot keep each step's state", why="it changes more than the formula"
            )
        return self.experiment(one).as_recorded(one.formula)

    def reschedule(self, one: Variant, policy: Policy | None) -> History:
        """The recorded requests scheduled afresh."""
        experiment = self.experiment(one)
        if one.scheduler is None:
            assert one.formula is not None
            return replace(experiment.reschedule(one.formula, one.policy or policy), name=one.name)
        engine, config = self.recording.engine, experiment.workload.config
        changed = experiment.changed_settings.values
        with one.scheduler.open(
            config, engine.env, engine.config, changed=changed, children=self.children
        ) as driven:
            return replace(experiment.reschedule(driven), name=one.name)
