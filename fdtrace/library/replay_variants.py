"""The replays of `fdtrace.replay`: each variant with its settings, and the processes of engines' schedulers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal

from fdtrace.drivers.children import DriverPool
from fdtrace.formula_texts import DEFAULT, FormulaLike, as_formulas
from fdtrace.library.engine_recording import RowsInMemory
from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer import Experiment, History, Policy
from fdtrace.replayer.analysis.token_times import parse_slo
from fdtrace.replayer.history.recording_lives import with_recorded_lives
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns
from fdtrace.replayer.recorded.recorded_timing import RecordedTiming
from fdtrace.replayer.replay.workload_replay import Progressed
from fdtrace.replayer.workload.swept_recording import SweptRecording
from fdtrace.variants import (
    Variant,
    clock_of_variant,
    coming_of_variant,
    only_arrivals_of,
    parse_variant,
    refuse_equal_names,
    resolved_variant,
    variant_of,
    variants_of,
)

VariantsLike = str | Sequence[str] | Mapping[str, Mapping[str, Any]]
"""Texts as `-w` takes them, or by name a mapping of settings."""


def chosen_variants(
    recording: Recording,
    formulas: FormulaLike | Sequence[FormulaLike] | None,
    variants: VariantsLike,
    python: str,
) -> list[Variant]:
    """What is replayed, in order: formulas, then variants, each with what schedules it.

    Raises:
        UsageError: a text is no formula or variant, or two have the same name.
    """
    parsed = parsed_variants(variants, python)
    plain = as_formulas(formulas if formulas is not None else () if parsed else DEFAULT)
    complete = [resolved_variant(variant, recording, python) for variant in parsed]
    chosen = [*variants_of(plain, [], [formula.name for formula in plain]), *complete]
    refuse_equal_names(chosen)
    for variant in chosen:
        variant.changed(recording.engine)
        if variant.scheduler is not None:
            variant.scheduler.refuse_others(recording)
    return chosen


def parsed_variants(variants: VariantsLike, python: str) -> list[Variant]:
    """The variants that a program gives. UsageError if a text is none."""
    if isinstance(variants, Mapping):
        return [variant_of(name, assigned, python) for name, assigned in variants.items()]
    return [parse_variant(text, python) for text in ([variants] if isinstance(variants, str) else variants)]


class VariantReplayer(AbstractContextManager["VariantReplayer"]):
    """Replays variants of one recording. The time model and the fit of memory are computed once."""

    def __init__(
        self,
        recording: Recording,
        chosen: Sequence[Variant],
        clock: Literal["steps", "time"] | None,
        device_bytes: int | None,
        slo: str | None,
        *,
        timed: bool = False,
    ) -> None:
        """`timed`: times are asked for by more than these variants."""
        clock = clock or only_arrivals_of(recording)
        self.recording, self.clock, self.device_bytes = recording, clock, device_bytes
        self.slo = parse_slo(slo)
        timed = (
            timed or bool(self.slo) or any(clock_of_variant(variant, clock) == "time" for variant in chosen)
        )
        self.timing = RecordedTiming(recording, self._batches) if timed else None
        self.children = DriverPool()
        self.swept: SweptRecording | None = None
        """With it, replays keep figures alone."""
        self._experiments: dict[str, Experiment] = {}

    def _batches(self) -> BatchRowColumns | None:
        rows = self.recording.details.step_rows
        return rows.batches(self.recording) if isinstance(rows, RowsInMemory) else None

    def __exit__(self, *_: object) -> None:
        self.children.close()

    def experiment(self, variant: Variant) -> Experiment:
        """The recording under a variant's settings."""
        if variant.name not in self._experiments:
            (clock, coming), changed = (
                coming_of_variant(variant, self.clock),
                variant.changed(self.recording.engine),
            )
            self._experiments[variant.name] = Experiment(
                *(self.recording, None, clock, self.device_bytes, changed, self.timing, self.slo, coming),
                swept=self.swept,
            )
        return self._experiments[variant.name]

    def recorded(self) -> History:
        """The recording itself."""
        history = Experiment(
            self.recording, None, "steps", self.device_bytes, timing=self.timing, slo=self.slo
        ).recorded()
        return with_recorded_lives(history, self.recording, lambda _: self._batches())

    def as_recorded(self, variant: Variant) -> History:
        """Every step in the state that it had. UsageError if the variant changes more than the formula."""
        if variant.formula is None or variant.settings:
            raise UsageError(
                f"{variant.name} cannot keep each step's state", why="it changes more than the formula"
            )
        return self.experiment(variant).as_recorded(variant.formula)

    def reschedule(
        self, variant: Variant, policy: Policy | None, progressed: Progressed | None = None
    ) -> History:
        """The recorded requests scheduled afresh."""
        experiment = self.experiment(variant)
        if variant.scheduler is None:
            assert variant.formula is not None
            return replace(
                experiment.reschedule(variant.formula, variant.policy or policy, progressed),
                name=variant.name,
            )
        engine, config = self.recording.engine, experiment.workload.config
        changed = experiment.changed_settings.values
        with variant.scheduler.open(
            config, engine.env, engine.config, changed=changed, children=self.children
        ) as driven:
            return replace(experiment.reschedule(driven, None, progressed), name=variant.name)
