"""The settings of a recorded engine that its scheduling depends on: recorded value, possible values, what they do.

`fdtrace replay TRACE -w 'NAME: SETTING=VALUE, …'` replays with other values. FastDeploy's settings are those that the
model and the real code follow. For vLLM, the installed version lists its settings (--scheduler vllm=DIR: that version).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fdtrace.trace_argument import trace_argument

if TYPE_CHECKING:
    from fdtrace.recorder.trace.recording import EngineInfo

OWN = (
    ("formula", "text", "a built-in name, an expression, or FILE.py:CLASS", "the token budget; else what recorded"),
    ("policy", "text", "original | release_2_6", "the version of the modelled scheduler"),
    ("scheduler", "text", "ENGINE[=DIR]", "an engine's real scheduler in place of the model"),
    ("arrivals", "text", "recorded | steps | closed | rate=1.5x", "when requests come: docs/whatif.md"),
    ("acceptances", "text", "drawn | recorded", "of more drafts: drawn from the request's record, or none beyond it"),
)  # fmt: skip
"""Keys of a variant that are no settings."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace knobs`."""
    from fdtrace.scheduler_option import add_scheduler_arguments

    parser.add_argument("trace", type=trace_argument, metavar="TRACE")
    parser.add_argument("--engine", type=int, metavar="N", help="which engine of a trace of several")
    parser.add_argument("--json", action="store_true", help="a JSON array, for machines")
    add_scheduler_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the settings."""
    import json

    from fdtrace.recorder.trace.trace import open_trace

    with open_trace(args.trace) as trace:
        engine = trace.recording(args.engine).engine
    knobs = knobs_of_engine(engine, args.scheduler, args.scheduler_python)
    if args.json:
        print(json.dumps(knobs))
    else:
        _print(engine, knobs)
    return 0


def knobs_of_engine(engine: EngineInfo, schedulers: list[str] | None, python: str) -> list[Mapping[str, Any]]:
    """The settings of an engine: name, kind, range, recorded value, text; for vLLM also the default.

    Raises:
        UsageError: a scheduler is not valid, or belongs to another engine.
        TargetError: vLLM cannot be imported by `python`.
    """
    from fdtrace.replayer.config import is_modelled
    from fdtrace.replayer.workload.engine_settings import knobs_of, recorded_value

    if not is_modelled(engine):
        return _of_vllm(engine, schedulers, python)
    return [
        {
            "name": knob.name,
            "kind": knob.kind,
            "range": knob.range,
            "recorded": recorded_value(knob, engine),
            "text": knob.text,
        }
        for knob in knobs_of(engine).values()
    ]


def _of_vllm(engine: EngineInfo, schedulers: list[str] | None, python: str) -> list[Mapping[str, Any]]:
    from fdtrace.drivers.child import DriverProcess
    from fdtrace.drivers.driven_scheduler import open_driver
    from fdtrace.drivers.vllm_scheduler import DrivenVllm
    from fdtrace.recorder.errors import UsageError
    from fdtrace.replayer.workload.engine_settings import VLLM_SIZES, recorded_value
    from fdtrace.scheduler_option import QUIET, driver_of, given_schedulers

    scheduler = given_schedulers(schedulers or [engine.name], python)[0]
    if scheduler.engine != engine.name:
        raise UsageError(f"--scheduler {scheduler.name} has no settings of a recording of {engine.name}")
    if scheduler.engine != "vllm":
        raise UsageError(
            f"no setting of {engine.name} can be changed in a replay",
            why=f"--scheduler {scheduler.name} runs with the recorded configuration",
        )
    with DriverProcess(driver_of(scheduler.engine), scheduler.checkout, python, QUIET) as child:
        open_driver(child, {"knobs": dict(engine.config)}, DrivenVllm.needs)
        knobs: list[dict[str, Any]] = child.ask({})["knobs"]
    for knob in knobs:
        size = VLLM_SIZES.get(knob["name"])
        if size is not None:
            recorded = recorded_value(size, engine)
            knob.update(recorded=recorded, text=knob["text"] or size.text, range=knob["range"] or size.range)
    return list(knobs)


def _print(engine: EngineInfo, knobs: list[Mapping[str, Any]]) -> None:
    from fdtrace.recorder.printable import printable

    print(printable(f"{engine.name} {engine.version}".strip()))
    for knob in knobs:
        allowed = knob["range"] or knob["kind"]
        print(f"  {printable(knob['name'])} = {printable(_shown(knob['recorded']))}  ({printable(allowed)})")
        if knob["text"]:
            print(f"      {printable(knob['text'])}")
    print("beside these, a variant may say")
    for name, _, allowed, text in OWN:
        print(f"  {name}  ({allowed})\n      {text}")


def _shown(value: Any) -> str:
    words = {None: "-", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
