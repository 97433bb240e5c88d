"""`fdtrace.replay_ranks`: all ranks of a deployment, as recorded and with other routings of their requests."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fdtrace.formula_texts import FormulaLike, as_formulas
from fdtrace.library.named_runs import NamedRuns
from fdtrace.library.replay_variants import VariantsLike, parsed_variants
from fdtrace.library.result_table import ResultTable
from fdtrace.library.trace_handle import TraceHandle, open_library_trace
from fdtrace.rank_replays import RankReplayer, coming_of_ranks, rank_variants, ranks_from, routings_of
from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.config import parse_policy
from fdtrace.replayer.history.history import History
from fdtrace.replayer.history.latency import Latencies
from fdtrace.replayer.rank_experiment import RankRun
from fdtrace.replayer.rank_figures import Imbalance, figures_of_ranks, imbalance_of
from fdtrace.variants import variants_of


class RoutedRun:
    """All ranks under one routing, or as recorded. `RankRuns` holds them by name."""

    def __init__(self, run: RankRun) -> None:
        self._run = run

    @property
    def name(self) -> str:
        """`recorded` for the recording, `same routing` for its replay; else that of the routing or the variant."""
        return self._run.name

    @property
    def latency(self) -> Latencies | None:
        """What the clients of all ranks waited, microseconds; None: it is not known."""
        return self._run.latency

    @property
    def imbalance(self) -> Imbalance:
        """How unevenly the work was spread over the ranks."""
        return imbalance_of(self._run)

    @property
    def modelled(self) -> tuple[str, ...]:
        """What it rests on beside the recording and the scheduler's rules."""
        return self._run.modelled

    @property
    def ranks(self) -> ResultTable:
        """A row a rank: `engine_id`, `rank`, `role`, requests, steps, tokens, `share_of_tokens`, `mean_running`,
        `mean_waiting`, `max_waiting`, `busy_share`, steps over the limit, preemptions, and if times are known
        `ttft_us_p50`, … , `itl_us_p99`.
        """
        return ResultTable.of_rows(
            [_rank_row(asdict(figures)) for figures in figures_of_ranks(self._run)], title=self.name
        )

    def steps(self, engine_id: int) -> ResultTable:
        """The steps of one rank, a row each, with `starts_us` and `ends_us` on the clock of all ranks.

        Raises:
            UsageError: there is no such engine.
        """
        ranks = {rank.engine.engine_id: rank for rank in self._run.ranks}
        if engine_id not in ranks:
            raise UsageError(
                f"there is no engine {engine_id!r}", hint=f"engines: {', '.join(map(str, ranks))}"
            )
        rank = ranks[engine_id]
        history: History = rank.history
        columns = {**history.columns, "starts_us": rank.starts_us, "ends_us": rank.ends_us}
        return ResultTable(
            columns, title=f"{self.name}, {rank.name}", may_be_negative=("token_budget", "allowed")
        )

    def __repr__(self) -> str:
        requests = ", ".join(f"{rank.name} {rank.num_requests}" for rank in self._run.ranks)
        return f"<RoutedRun {self.name}: requests of {requests}>"


class RankRuns(NamedRuns[RoutedRun]):
    """The recording, under the name `recorded`, and its replays, in the order given."""

    def table(self) -> ResultTable:
        """A row a run: how uneven its ranks are, seconds that requests waited, percentiles and throughput of all."""
        rows = []
        for run in self._runs.values():
            imbalance = run.imbalance
            rows.append(
                {
                    "name": run.name,
                    "routing": run._run.routing or None,
                    **asdict(imbalance),
                    "share_beside_room": imbalance.share_beside_room,
                    **_spread(None if run.latency is None else asdict(run.latency)),
                }
            )
        return ResultTable.of_rows(rows, title="runs of all ranks")


def replay_ranks(
    trace: TraceHandle | str | os.PathLike[str],
    routing: str | Sequence[str] = (),
    formulas: FormulaLike | Sequence[FormulaLike] = (),
    *,
    variants: VariantsLike = (),
    policy: str | None = None,
    arrivals: str | None = None,
    slo: str | None = None,
    scheduler_python: str = sys.executable,
) -> RankRuns:
    """Put the ranks of a trace side by side, and replay their requests under other routings (docs/whatif.md).

    Args:
        trace: an open trace, or the path of one.
        routing: one or several names: `round_robin`, `least_requests`, `least_tokens`, `least_kv_blocks`,
            `prefix_affinity`, `vllm`.
        formulas: what schedules each rank instead of what was recorded, as for `replay`.
        variants: replays with changed settings, as for `replay`; the key `routing` names its routing.
        policy: the version of the modelled scheduler.
        arrivals: `recorded`, or `rate=1.5x`.
        slo: objectives of a request, as `"ttft=500ms,itl=50ms"`.
        scheduler_python: a Python that can import the engine whose scheduler schedules.

    Returns:
        The recording as `runs["recorded"]`; if anything is replayed, `runs["same routing"]`: the recorded routing,
        replayed; and a run for each routing.

    Raises:
        UsageError: a name is not known, the ranks cannot take each other's requests, or the recording does not show how
            long steps take.
        TraceError: nothing was recorded, or (given a path) the file is no trace.
    """
    if isinstance(trace, TraceHandle):
        return _replayed(trace, routing, formulas, variants, policy, arrivals, slo, scheduler_python)
    with open_library_trace(trace) as opened:
        return _replayed(opened, routing, formulas, variants, policy, arrivals, slo, scheduler_python)


def _replayed(
    trace: TraceHandle,
    routing: str | Sequence[str],
    formulas: FormulaLike | Sequence[FormulaLike],
    variants: VariantsLike,
    policy: str | None,
    arrivals: str | None,
    slo: str | None,
    python: str,
) -> RankRuns:
    numbers = [row["engine_id"] for row in trace.engines()] or [None]
    recordings = [trace.recording(number).value for number in numbers]
    experiment = ranks_from(recordings, slo)
    chosen = as_formulas(formulas)
    given = [
        *variants_of(chosen, [], [formula.name for formula in chosen]),
        *parsed_variants(variants, python),
    ]
    names = routings_of([routing] if isinstance(routing, str) else routing)
    whole = rank_variants(recordings[0], given, names, python)
    parsed_policy = None if policy is None else parse_policy(policy)
    with RankReplayer(experiment, parsed_policy, coming_of_ranks(arrivals)) as replayer:
        return RankRuns([RoutedRun(replayer.recorded()), *(RoutedRun(replayer.run(one)) for one in whole)])


def _rank_row(figures: dict[str, Any]) -> dict[str, Any]:
    latency = figures.pop("latency")
    return {**figures, "why_not_done": figures["why_not_done"] or None, **_spread(latency)}


def _spread(latency: dict[str, Any] | None) -> dict[str, Any]:
    """Percentiles and throughput of `Latencies`, as columns of a table."""
    found: dict[str, Any] = {}
    for name in ("ttft_us", "itl_us", "latency_us"):
        for share in ("p50", "p95", "p99"):
            found[f"{name}_{share}"] = None if latency is None else latency[name][share]
    for name in ("output_tokens_per_s", "requests_per_s", "goodput_per_s"):
        found[name] = None if latency is None else latency[name]
    return found
