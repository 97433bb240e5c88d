"""For CI: exit 1 when a formula, replayed on a trace, exceeds the limit more often than allowed, or hangs.

TRACE may be a file NAME.fdtrace.toml: it names a trace or a case, formulas, and what each may do (docs/search.md).
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace check`."""
    from fdtrace.build_replays import add_replay_arguments
    from fdtrace.compute_replays import add_jobs_argument

    add_replay_arguments(parser)
    add_jobs_argument(parser)
    parser.add_argument(
        "--max-exceeded", type=int, default=0, metavar="N", help="steps over the limit allowed (default 0)"
    )


def run(args: argparse.Namespace) -> int:
    """Replay, and print for each formula whether it passes. Returns 1 if one fails."""
    from fdtrace.build_replays import Replays
    from fdtrace.compute_replays import compute_replays
    from fdtrace.recorded_rows import RecordedRows
    from fdtrace.recorder.errors import TraceError
    from fdtrace.recorder.printable import printable
    from fdtrace.recorder.trace.standstill import standstill_of
    from fdtrace.recorder.trace.trace import open_trace

    if args.trace.name.endswith(".toml"):
        return _check_file(args)
    with open_trace(args.trace) as trace:
        recording = trace.recording(args.engine)
        if not recording.num_steps:
            still = standstill_of(trace, recording.engine.engine_id)
            raise TraceError(
                f"{args.trace} holds no step to check",
                why=still.sentence if still is not None else "no forward ran while it was recorded",
                hint=f"`fdtrace info {args.trace}` says what it holds",
            )
        rows = RecordedRows(trace, recording.engine.engine_id)
        with Replays(recording, args, rows) as replays:
            histories = compute_replays(replays)[1:]
    failed = 0
    for history in histories:
        outcome = history.outcome
        ended = outcome.hang or outcome.cut
        bad = outcome.num_exceeded > args.max_exceeded or ended is not None
        failed += bad
        hang = f"; {outcome.why_not_done}" if ended else ""
        line = (
            f"{'FAIL' if bad else 'ok  '} {history.name}: {outcome.num_exceeded} of {outcome.num_steps} steps over "
            f"{history.limit}, by {outcome.max_excess} tokens at most{hang}"
        )
        print(printable(line))
    return 1 if failed else 0


def _check_file(args: argparse.Namespace) -> int:
    """Check the expectations of a file. Returns 1 if one does not hold."""
    from fdtrace.expectations import read_expectations, verdict_of
    from fdtrace.recorder.errors import UsageError
    from fdtrace.recorder.printable import printable

    if args.formula or args.variant or args.scheduler:
        raise UsageError(
            f"{args.trace} says itself what is replayed", hint="leave out -f, -w and --scheduler"
        )
    failed = 0
    for expectation in read_expectations(args.trace):
        verdict = verdict_of(expectation)
        failed += not verdict.passed
        print(printable(f"{'ok  ' if verdict.passed else 'FAIL'} {expectation.name}"))
        for line in verdict.text.splitlines() if not verdict.passed else ():
            print(printable(f"     {line}"))
    return 1 if failed else 0
