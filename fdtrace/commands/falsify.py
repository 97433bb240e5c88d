"""Search workloads and configurations for one that breaks a formula: what FastDeploy's own checks let start, and a step
runs more tokens than the limit, nothing moves any more, a request starves.

What is found is shrunk to the smallest workload that still shows it, a case that `fdtrace simulate` reads. With
--scheduler, the engine's real code runs it too: what only the model shows is a fault of the model. Without -f, the real
scheduler itself is searched.

Exit code 1: something was found. 0: nothing was found, and the output says what was tried: that is no proof.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import closing
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from fdtrace.recorder.errors import UsageError

if TYPE_CHECKING:
    from fdtrace.replayer.search.draw_case import SearchSpace
    from fdtrace.replayer.search.falsifier import Falsifier, FaultyCase
    from fdtrace.searching.falsify_runs import FalsifyRuns
    from fdtrace.searching.search_options import SearchPlan
    from fdtrace.searching.search_report import FaultReport

KINDS = "exceeded, hang, livelock, held, fails, starved, preempted, withheld"
DEFAULT_SECONDS = 60.0
MOST_RUNS_OF_SHRINKING = 5000
LEAST_SHRINKING = 60.0
"""Seconds that a real scheduler may shrink for, at least."""
SAVE_EVERY = 10.0
"""Seconds between two saves of the state."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace falsify`."""
    from fdtrace.searching.search_options import add_search_arguments

    add_search_arguments(parser)
    parser.add_argument(
        "--find",
        action="append",
        metavar="FAULT",
        help=f"only these faults: {KINDS} (default: all); repeatable",
    )
    parser.add_argument(
        "--like", type=Path, metavar="T", help="near a trace or a case: its sizes; requests with its lengths, gaps and "
        "acceptances"
    )  # fmt: skip
    parser.add_argument(
        "--role",
        choices=("mixed", "prefill", "decode"),
        default="mixed",
        help="of the instance (default: mixed)",
    )
    parser.add_argument(
        "--no-variables",
        action="store_true",
        help="leave FastDeploy's environment variables at their defaults",
    )
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="how long to search (default 60, without --runs)"
    )
    parser.add_argument(
        "--runs", type=int, metavar="N", help="how many workloads to run; the same N finds the same"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed draws other workloads")
    parser.add_argument(
        "--all",
        action="store_true",
        help="go on to the end of the budget; each fault with another cause is shown once",
    )
    parser.add_argument(
        "--state", type=Path, metavar="FILE", help="save the search there, and go on with what is saved there"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="processes (default: one a processor); any number finds the same",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")


def run(args: argparse.Namespace) -> int:
    """Search; 1 if something was found."""
    from fdtrace.searching.falsify_runs import FalsifyRuns
    from fdtrace.searching.search_options import by_real_scheduler, searched
    from fdtrace.worker_processes import num_processors

    if args.runs is not None and args.runs < 1:
        raise UsageError(f"--runs is {args.runs}", hint="1 or more")
    seconds = args.seconds if args.seconds is not None else (None if args.runs else DEFAULT_SECONDS)
    if seconds is not None and seconds <= 0:
        raise UsageError(f"--seconds is {seconds:g}", hint="more than 0")
    if args.jobs is not None and args.jobs < 1:
        raise UsageError(f"--jobs is {args.jobs}", hint="1 or more")
    with by_real_scheduler(searched(args, args.find)) as found:
        jobs = args.jobs if args.jobs is not None else num_processors()
        with FalsifyRuns(args, found.target, jobs) as runs:
            return _Run(args, found, seconds, runs).run()


class _Run:
    """One search with its budget, its progress and its state."""

    def __init__(
        self, args: argparse.Namespace, searched: SearchPlan, seconds: float | None, runs: FalsifyRuns
    ) -> None:
        from fdtrace.progress import Progress
        from fdtrace.replayer.search.falsifier import Falsifier

        self.args, self.searched, self.runs = args, searched, runs
        self.begin = self.saved = time.monotonic()
        self.end = None if seconds is None else self.begin + seconds
        self.progress = Progress()
        self.falsifier: Falsifier = Falsifier(
            searched.target, self._space(), lambda i: Random(f"{args.seed}/{i}")
        )
        self.found: list[FaultReport] = []
        self.signatures: set[str] = set()
        self._resume()

    def _space(self) -> SearchSpace:
        from fdtrace.replayer.search.draw_case import SearchSpace
        from fdtrace.searching.search_options import base_case

        args = self.args
        if args.like is None:
            return SearchSpace(args.role, self.searched.fixed, None, not args.no_variables)
        base, notes = base_case(args.like, args.engine)
        if not base.get("requests"):
            raise UsageError(
                f"{args.like} holds no request", hint="a search near it draws its requests from there"
            )
        for note in notes:
            self.progress.note(note)
        if self.searched.target.workload({**base, **self.searched.fixed}) is None:
            raise UsageError(
                f"nothing can be searched near {args.like}",
                why="FastDeploy's own checks refuse its sizes under this formula",
                hint="--allow-refused searches there all the same",
            )
        return SearchSpace(base.get("role", "mixed"), self.searched.fixed, base, not args.no_variables)

    def run(self) -> int:
        """Search to the end of the budget, or to the first fault without --all."""
        first = self.falsifier.next_run
        try:
            while self._goes_on(first) and not self._batch(first):
                pass
        finally:
            self.progress.clear()
            self._save()
        self._print_end()
        return int(bool(self.found))

    def _batch(self, first: int) -> bool:
        """Run the rest of a batch, as far as the budget goes. Whether the search is done with what it found."""
        cases = self.falsifier.draw()
        if self.args.runs is not None:
            cases = cases[: self.args.runs - (self.falsifier.next_run - first)]
        with closing(self.runs.outcomes(cases)) as outcomes:
            for case, outcome in zip(cases, outcomes, strict=True):
                found = self.falsifier.take(case, outcome)
                if found is not None and self._is_new(found):
                    self._take(found)
                    if not self.args.all:
                        return True
                self._show()
                if not self._goes_on(first):
                    return False
        return False

    def _goes_on(self, first: int) -> bool:
        if self.args.runs is not None and self.falsifier.next_run - first >= self.args.runs:
            return False
        return self.end is None or time.monotonic() < self.end

    def _is_new(self, found: FaultyCase) -> bool:
        from fdtrace.replayer.search.falsifier import signature

        name = signature(found.case, found.finding)
        if name in self.signatures:
            return False
        self.signatures.add(name)
        return True

    def _take(self, found: FaultyCase) -> None:
        """Shrink what was found, and print it."""
        from fdtrace.searching.search_report import FaultReport, examine, print_fault, save_case, size_text
        from fdtrace.searching.shrinking import shrunk

        after = f"after {self.falsifier.next_run:,} workloads in {time.monotonic() - self.begin:.1f} s"
        small = shrunk(
            found,
            self.searched,
            self.progress,
            most_runs=MOST_RUNS_OF_SHRINKING,
            seconds=self._seconds_to_shrink(),
        )
        how = f"{after}; shrunk from {size_text(found.case)} to {size_text(small.best)} in {small.num_runs} runs"
        fault = FaultReport(self.searched.name, small.finding, small.best, how)
        self.progress.clear()
        examine(fault, self.searched)
        self.found.append(fault)
        path = self.args.output
        if path is not None and len(self.found) > 1:
            path = path.with_stem(f"{path.stem}-{len(self.found)}")
        if path is not None:
            save_case(path, small.best)
        if not self.args.json:
            print_fault(fault, self.searched.option, path)

    def _seconds_to_shrink(self) -> float | None:
        """The model shrinks as far as it goes. A real scheduler takes seconds for a run: it has what is left."""
        if self.searched.by is None:
            return None
        return LEAST_SHRINKING if self.end is None else max(LEAST_SHRINKING, self.end - time.monotonic())

    def _show(self) -> None:
        covered = self.falsifier.covered
        if self.progress.terminal and self.falsifier.next_run % 20 == 0:
            kinds = self.searched.target.kinds
            near = ", ".join(
                f"{kind} {share:.0%}" for kind, share in covered.nearest.items() if kind in kinds
            )
            self.progress.update(
                f"{covered.num_runs:,} workloads, {len(self.found)} faults, "
                f"{time.monotonic() - self.begin:.0f} s; nearest: {near}"
            )
        if self.args.state is not None and time.monotonic() - self.saved >= SAVE_EVERY:
            self._save()

    def _print_end(self) -> None:
        from fdtrace.searching.search_report import covered_figures, print_covered

        covered, target = self.falsifier.covered, self.searched.target
        seconds = time.monotonic() - self.begin
        if self.args.json:
            faults = [fault.figures() for fault in self.found]
            print(
                json.dumps(
                    {"found": faults, "covered": covered_figures(covered), "seconds": round(seconds, 1)}
                )
            )
        elif not self.found:
            print_covered(self.searched.name, target.kinds, covered, seconds)
        elif self.args.all:
            sys.stderr.write(
                f"fdtrace: {len(self.found)} faults with different causes in {covered.num_runs:,} workloads, "
                f"{seconds:.0f} s\n"
            )

    # The state ----------------------------------------------------------------------------------------------

    def _key(self) -> dict[str, Any]:
        """What a saved search must have been for this one to go on with it."""
        args, target = self.args, self.searched.target
        return {
            "searched": self.searched.name,
            "policy": target.policy.name,
            "kinds": list(target.kinds),
            "role": args.role,
            "seed": args.seed,
            "like": None if args.like is None else str(args.like),
            "fixed": dict(self.searched.fixed),
        }

    def _resume(self) -> None:
        if self.args.state is None or not self.args.state.exists():
            return
        from fdtrace.workload_file import read_case

        saved = read_case(self.args.state)
        if not isinstance(saved, dict) or saved.get("key") != self._key():
            raise UsageError(
                f"{self.args.state} is the state of another search, or of none",
                hint="the same formula, faults and seed; or another file",
            )
        self.falsifier.resume(saved)
        self.signatures = set(map(str, saved.get("signatures", ())))
        self.progress.note(f"going on after {self.falsifier.next_run:,} drawn workloads of {self.args.state}")

    def _save(self) -> None:
        if self.args.state is None:
            return
        self.saved = time.monotonic()
        state = {"key": self._key(), **self.falsifier.state(), "signatures": sorted(self.signatures)}
        new = self.args.state.with_name(self.args.state.name + ".new")
        try:
            new.write_text(json.dumps(state), encoding="utf-8")
            new.replace(self.args.state)
        except OSError as error:
            raise UsageError(
                f"{self.args.state} cannot be written", why=error.strerror or str(error)
            ) from None
