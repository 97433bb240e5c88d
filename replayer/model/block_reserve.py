"""Blocks that an admission must leave free for the running requests: FastDeploy counts them in two ways."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable

from fdtrace.replayer.config import Policy, SchedulerConfig
from fdtrace.replayer.model.state import State


class Reserve(ABC):
    """How many free blocks a prefill needs before it gets its own."""

    def __init__(self, config: SchedulerConfig, policy: Policy) -> None:
        self.config, self.policy = config, policy
        self.given: list[int] = []
        """Thresholds that a recorded call used, the last one first."""
        self.num_faults = 0
        """Of those used, how many no output made meanwhile explains."""

    @property
    def new_token_ratio(self) -> float | None:
        """The share of the tokens still to come that blocks are kept for; None: it does not reserve by one."""
        return None

    @abstractmethod
    def snapshot(self) -> Hashable:
        """All that its later answers follow from, beside the requests."""

    def threshold(self, num_new_blocks: int, state: State) -> int:
        """Free blocks needed to schedule a prefill that takes `num_new_blocks`.

        FastDeploy: `ResourceManagerV1._get_can_schedule_prefill_threshold_block`. Before release 2.6
        speculation's extra block is added only where blocks are reserved at all.
        """
        needed = self._own_threshold(num_new_blocks, state)
        if not self.given:
            return needed
        given = self.given.pop()
        # Each running request may have made tokens meanwhile, and so needs a block less.
        if not needed - len(state.running) <= given <= needed:
            self.num_faults += 1
        return given if given >= min(num_new_blocks, needed) else needed

    def _own_threshold(self, num_new_blocks: int, state: State) -> int:
        reserved = self.reserved(state)
        needed = num_new_blocks if reserved is None else num_new_blocks + reserved
        if self.config.speculation and (reserved is not None or self.policy.spec_block_always):
            needed = min(needed + 1, self.config.max_blocks_per_seq)
        return needed

    @abstractmethod
    def reserved(self, state: State) -> int | None:
        """Blocks kept for the running requests; None: the reserve is relaxed."""

    @abstractmethod
    def begin(self, value: float, *, relaxed: bool) -> None:
        """Go on from a reserve that was found: a ratio, or a number of blocks that are asked for unless `relaxed`."""

    @abstractmethod
    def preempted(self, state: State) -> None:
        """A request was preempted: reserve afresh."""

    @abstractmethod
    def scheduled(self) -> None:
        """A call scheduled something: reserve a little less."""


class DecayingReserve(Reserve):
    """A number of blocks a running request, less from call to call, again in full after a preemption.

    FastDeploy: `current_reserve_output_block_num` in `ResourceManagerV1`. Nothing is reserved until the first
    preemption, nor once the number has come down to 0.
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
        if self.relaxed:  # what is left of the number is not looked at before a preemption renews it
            return
        self.exact -= self.config.reserve_decay
        self.blocks = max(int(self.exact), self.config.reserve_min_blocks, 0)
        if self.blocks == 0:
            self.relaxed = True


class NewTokenRatio(Reserve):
    """A share of what each running request may still make, a share that decays and is estimated at a
    preemption.

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

    def preempted(self, state: State) -> None:
        if not state.running:
            self.ratio = self.config.init_new_token_ratio
            return
        now, running = state.num_forwards, state.running
        made = sum(request.output_at(now) for request in running)
        most = sum(request.max_tokens for request in running)
        decodes = sum(request.prompt + request.output_at(now) > request.need_prefill for request in running)
        ahead = 16 * self.config.block_size * decodes
        self.ratio = min((made + ahead) / (most + 1), self.config.init_new_token_ratio)

    def scheduled(self) -> None:
        self.ratio = max(self.ratio - self.config.new_token_ratio_decay, self.config.min_new_token_ratio)


def reserve_of(config: SchedulerConfig, policy: Policy) -> Reserve:
    """The reserve of a policy under a configuration."""
    if policy.new_token_ratio and config.use_new_token_ratio:
        return NewTokenRatio(config, policy)
    return DecayingReserve(config, policy)
