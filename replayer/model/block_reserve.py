"""Blocks that must stay free for the running requests when a prefill gets blocks. FastDeploy has two rules for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable

from fdtrace.replayer.config import Policy, SchedulerConfig
from fdtrace.replayer.model.state import State


class Reserve(ABC):
    """How many free blocks a prefill needs before it gets its own."""

    def __init__(self, config: SchedulerConfig, policy: Policy) -> None:
        self.config, self.policy = config, policy
        self.recorded_thresholds: list[int] = []
        """Thresholds that a recorded call used, the last one first."""
        self.num_faults = 0
        """How many of the recorded thresholds cannot be explained by output that was emitted during the call."""

    @property
    def new_token_ratio(self) -> float | None:
        """The share of the remaining output tokens that blocks are reserved for; None: there is no such ratio."""
        return None

    @abstractmethod
    def snapshot(self) -> Hashable:
        """The state that decides its later answers, apart from the requests."""

    def surely_met(self, num_new_blocks: int, state: State) -> bool:
        """Whether so many blocks are free that `threshold` is met, whatever it is exactly. False: that is not known.

        It saves a sum over all running requests where blocks are plenty.
        """
        return False

    def threshold(self, num_new_blocks: int, state: State) -> int:
        """Free blocks needed to schedule a prefill that takes `num_new_blocks`.

        FastDeploy: `ResourceManagerV1._get_can_schedule_prefill_threshold_block`. Before release 2.6
        speculation's extra block is added only where blocks are reserved at all.
        """
        needed = self._modelled_threshold(num_new_blocks, state)
        if not self.recorded_thresholds:
            return needed
        recorded = self.recorded_thresholds.pop()
        # Each running request may have emitted tokens during the call, and then needs one block less.
        if not needed - len(state.running) <= recorded <= needed:
            self.num_faults += 1
        return recorded if recorded >= min(num_new_blocks, needed) else needed

    def _modelled_threshold(self, num_new_blocks: int, state: State) -> int:
        reserved = self.reserved(state)
        needed = num_new_blocks if reserved is None else num_new_blocks + reserved
        if self.config.speculation and (reserved is not None or self.policy.spec_block_always):
            needed = min(needed + 1, self.config.max_blocks_per_seq)
        return needed

    @abstractmethod
    def reserved(self, state: State) -> int | None:
        """Blocks reserved for the running requests; None: the reserve is relaxed."""

    @abstractmethod
    def begin(self, value: float, *, relaxed: bool) -> None:
        """Start with the reserve of a recording: `value` as in `ReserveAtStart`; `relaxed`: no blocks are reserved."""

    @abstractmethod
    def preempted(self, state: State) -> None:
        """A request was preempted: start the reserve again."""

    @abstractmethod
    def scheduled(self) -> None:
        """A call scheduled something: reserve a little less."""


class DecayingReserve(Reserve):
    """A number of blocks for each running request. It decays from call to call; a preemption restores it in full.

    FastDeploy: `current_reserve_output_block_num` in `ResourceManagerV1`. Nothing is reserved before the first
    preemption, or after the number has reached 0.
    """

    def __init__(self, config: SchedulerConfig, policy: Policy) -> None:
        super().__init__(config, policy)
        self.blocks = config.reserve_blocks
        self.exact = float(config.reserve_blocks)
        self.relaxed = True

    def begin(self, value: float, *, relaxed: bool) -> None:
        self.exact, self.relaxed = value, relaxed
        self.blocks = max(int(value), self.config.reserve_min_blocks, 0)

    def snapshot(self) -> Hashable:
        return None if self.relaxed else (self.blocks, self.exact)

    def reserved(self, state: State) -> int | None:
        return None if self.relaxed else len(state.running) * self.blocks

    def preempted(self, state: State) -> None:
        self.blocks = self.config.reserve_blocks
        self.exact = float(self.config.reserve_blocks)
        self.relaxed = False

    def scheduled(self) -> None:
        if self.relaxed:  # the number is not read until a preemption restores it
            return
        self.exact -= self.config.reserve_decay
        self.blocks = max(int(self.exact), self.config.reserve_min_blocks, 0)
        if self.blocks == 0:
            self.relaxed = True


class NewTokenRatio(Reserve):
    """A share of the tokens that each running request may still emit. The share decays, and a preemption estimates
    it again.

    FastDeploy 2.6: `_get_running_request_reserve_blocks` and `_reset_reserve_on_preemption` in
    `ResourceManagerV1`.
    """

    def __init__(self, config: SchedulerConfig, policy: Policy) -> None:
        super().__init__(config, policy)
        self.ratio = config.init_new_token_ratio

    def begin(self, value: float, *, relaxed: bool) -> None:
        self.ratio = value

    @property
    def new_token_ratio(self) -> float | None:
        return self.ratio

    def snapshot(self) -> Hashable:
        return self.ratio

    def reserved(self, state: State) -> int | None:
        clip, ratio, size, now = (
            self.config.clip_max_new_tokens,
            self.ratio,
            self.config.block_size,
            state.num_forwards,
        )
        blocks = 0
        for request in state.running:
            left = request.max_tokens - request.output_at(now)
            tokens = int((left if left < clip else clip) * ratio)
            if tokens > 0:
                blocks += (tokens + size - 1) // size
        return blocks

    def surely_met(self, num_new_blocks: int, state: State) -> bool:
        if self.recorded_thresholds:
            return False
        # Of each request at most its share of all tokens that it may emit, and a block begun; one for the rounding.
        most = int(state.most_new_tokens * self.ratio) // self.config.block_size + len(state.running) + 1
        return state.pool.num_free > num_new_blocks + most + 1  # and speculation's extra block

    def preempted(self, state: State) -> None:
        if not state.running:
            self.ratio = self.config.init_new_token_ratio
            return
        now, running = state.num_forwards, state.running
        num_output = sum(request.output_at(now) for request in running)
        max_output = sum(request.max_tokens for request in running)
        num_decodes = sum(
            request.prompt + request.output_at(now) > request.need_prefill for request in running
        )
        num_ahead = 16 * self.config.block_size * num_decodes
        self.ratio = min((num_output + num_ahead) / (max_output + 1), self.config.init_new_token_ratio)

    def scheduled(self) -> None:
        self.ratio = max(self.ratio - self.config.new_token_ratio_decay, self.config.min_new_token_ratio)


def reserve_of(config: SchedulerConfig, policy: Policy) -> Reserve:
    """The reserve of a policy under a configuration."""
    if policy.new_token_ratio and config.use_new_token_ratio:
        return NewTokenRatio(config, policy)
    return DecayingReserve(config, policy)
