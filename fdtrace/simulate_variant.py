"""Simulates a workload under one variant: for `fdtrace simulate` and `fdtrace.simulate`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.config import ORIGINAL, Policy
from fdtrace.replayer.experiment import policy_with
from fdtrace.replayer.model.scheduler import Scheduler
from fdtrace.replayer.model.state import SchedulerFailed
from fdtrace.replayer.replay.any_scheduler import AnyScheduler
from fdtrace.replayer.replay.simulation import Simulation, Step, golden_line
from fdtrace.replayer.workload.startup_checks import refusals
from fdtrace.replayer.workload.workload import Workload
from fdtrace.simulation_result import SimulationResult
from fdtrace.variants import Variant, engine_of, refuse_routing, workload_of


def checked_variant(variant: Variant) -> Variant:
    """The variant, if a workload can be simulated under it: no recording says what schedules it. UsageError."""
    if variant.arrivals is not None:
        raise UsageError(f"{variant.name} has arrivals", why="a workload says itself when its requests come")
    refuse_routing(variant)
    if variant.formula is None and variant.scheduler is None:
        raise UsageError(
            f"{variant.name} does not say by which formula", hint=f"-w '{variant.name}: formula=pr7499, …'"
        )
    return variant


def simulate_variant(
    workload: Workload,
    variant: Variant,
    policy: Policy | None,
    each: Callable[[Step], None] | None = None,
) -> SimulationResult:
    """Simulate to the end of the workload, to a hang, to the limit of steps, or until the scheduler fails.

    Args:
        workload: what to schedule.
        variant: by what, and under which settings.
        policy: the version of the model if the variant names none; None: that of the formula's time.
        each: called with each step, which still has its rows.

    Raises:
        UsageError: the scheduler refuses the configuration.
        TargetError: an engine's scheduler cannot be imported or driven.
    """
    workload = workload_of(workload, variant)
    version = _version_of(variant, policy)
    with _scheduler(workload, variant, version) as (scheduler, refused):
        simulation = Simulation(workload, scheduler)
        simulated = SimulationResult(variant, simulation, version, refused)
        try:
            for step in simulation:
                if each is not None:
                    each(step)
                simulated.add(step, json.dumps(golden_line(step)))
        except SchedulerFailed as failure:
            simulated.failure = f"fails at step {simulation.step}: {failure}"
    return simulated


def _version_of(variant: Variant, policy: Policy | None) -> Policy | None:
    """The version of the model; None: an engine's real scheduler schedules."""
    if variant.formula is None:
        return None
    return variant.policy or policy or policy_with(variant.formula) or ORIGINAL


@contextmanager
def _scheduler(
    workload: Workload, variant: Variant, version: Policy | None
) -> Iterator[tuple[AnyScheduler, list[str]]]:
    """The scheduler, and what the FastDeploy version that the model follows would refuse of this workload."""
    if variant.scheduler is not None:
        env = (workload.case or {}).get("env") or {}
        changed = variant.changed(engine_of(workload, variant.scheduler.engine)).values
        with variant.scheduler.open(workload.config, env, changed=changed) as driven:
            yield driven, []
        return
    assert variant.formula is not None
    assert version is not None
    refused = refusals(workload.config, variant.formula.name, version, workload.requests)
    scheduler = Scheduler(workload.config, variant.formula, version, explain=False)
    yield scheduler, [refusal.text for refusal in refused]
