"""The requests of all ranks of a deployment on one clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from fdtrace.replayer.workload.workload import BlockKey, Workload, WorkRequest


@dataclass(frozen=True)
class RankWorkloads:
    """The workloads of all ranks; times in microseconds since the first call of any rank."""

    ranks: tuple[Workload, ...]
    """Of each rank: its sizes, and the requests that were there when its recording began. They stay there."""
    begins: tuple[float, ...]
    """When each rank's recording began."""
    requests: tuple[WorkRequest, ...]
    """All other requests, in order of arrival."""
    rank_of: Mapping[str, int]
    """The entry of the rank that had each of them in the recording."""


def joined_workloads(workloads: Sequence[Workload], begins: Sequence[float]) -> RankWorkloads:
    """The workloads of ranks, each on a clock of its own, on one clock.

    Args:
        workloads: by time, one for each rank.
        begins: when each one's clock is 0, microseconds on the common clock.
    """
    counts = Counter(request.request_id for workload in workloads for request in workload.requests)
    most_steps = sum(workload.max_steps for workload in workloads)
    ranks: list[Workload] = []
    coming: list[tuple[WorkRequest, int]] = []
    for rank, (workload, begin) in enumerate(zip(workloads, begins, strict=True)):
        own = []
        for request in workload.requests:
            moved = _moved(request, rank, round(begin), is_shared=counts[request.request_id] > 1)
            if request.resumed is None:
                coming.append((moved, rank))
            else:
                own.append(moved)
        ranks.append(replace(workload, requests=tuple(own), max_steps=most_steps))
    coming.sort(key=lambda request_and_rank: request_and_rank[0].arrival)
    return RankWorkloads(
        tuple(ranks),
        tuple(begins),
        tuple(request for request, _ in coming),
        {request.request_id: rank for request, rank in coming},
    )


def _moved(request: WorkRequest, rank: int, begin: int, *, is_shared: bool) -> WorkRequest:
    """A request on the common clock. If several ranks have its id, its rank is added to it."""
    request_id = f"{request.request_id} (rank {rank})" if is_shared else request.request_id
    moved = request._replace(
        request_id=request_id,
        arrival=request.arrival + begin,
        after_idle=False,
    )
    return _with_resumed_anew(moved)


def with_keys_of_rank(workload: Workload, rank: int) -> Workload:
    """The workload of a rank with keys for the content of blocks that hold on all ranks."""
    requests = (
        _with_resumed_anew(request._replace(block_key=_key_of_rank(request.block_key, rank)))
        for request in workload.requests
    )
    return replace(workload, requests=tuple(requests))


def _with_resumed_anew(request: WorkRequest) -> WorkRequest:
    if request.resumed is None:
        return request
    return request._replace(resumed=replace(request.resumed, arrived=request.arrived()))


def _key_of_rank(key: BlockKey | None, rank: int) -> BlockKey | None:
    """The keys of a request's blocks. A recorded hash (a number) means the same on all ranks; other keys do not."""
    if key is None:
        return None

    def of_rank(block: int) -> Hashable:
        value = key(block)
        return value if isinstance(value, int) else (rank, value)

    return of_rank
