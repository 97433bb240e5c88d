"""What a call of `schedule()` hands out."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class CachedRequestData:
    req_ids: list[str] = field(default_factory=list)
    new_block_ids: list[tuple[list[int], ...] | None] = field(default_factory=list)


@dataclass
class SchedulerOutput:
    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)
    scheduled_spec_decode_tokens: dict[str, list[int]] = field(default_factory=dict)
    scheduled_cached_reqs: CachedRequestData = field(default_factory=CachedRequestData)
    total_num_scheduled_tokens: int = 0
    starts: dict[str, int] = field(default_factory=dict)
    prefills: set[str] = field(default_factory=set)


@dataclass
class ModelRunnerOutput:
    req_ids: list[str]
    sampled_token_ids: list[list[int]]
    req_id_to_index: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.req_id_to_index = {name: place for place, name in enumerate(self.req_ids)}
