"""Makes a case small: delta debugging that knows what a case is made of.

A change is kept if the case still shows the same kind of fault. Each change makes a case smaller, so this ends:

- **Time**: requests that arrive after the fault go at once; then arrivals move together.
- **Requests**: halves, quarters and so on, down to each single one (Zeller and Hildebrandt's ddmin).
- **Scale**: everything by half; or fewer sequences, with the tokens that they took from the limit. One number alone
  cannot change where two balance each other, as the limit and `max_num_seqs * (K + 1)`.
- **Numbers**: each length and each size as small as it goes, by bisection; each option that is not needed goes.

Bisection takes it that a smaller number that fails means that those below it fail too. That is mostly so. Where it is
not, the case is not the smallest there is, but it still shows the fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

from fdtrace.replayer.search.draw_case import NEVER, SearchCase, tidy
from fdtrace.replayer.search.findings import Finding

Shows = Callable[[SearchCase], Finding | None]
Shrunk = Callable[[SearchCase, Finding, int], None]
"""Called after each smaller case, with what it shows, and the runs so far."""

LEAST_BLOCK_SIZE = 8
MOST_ROUNDS = 12
_LEAST = {"output": 1, "prompt": 1, "arrival": 0, "abort_after": 0, "max_tokens": 1, "join_after": 0}
OPTIONS = (
    "abort_after",
    "group",
    "max_tokens",
    "discarded",
    "accepts",
    "join_after",
    "send_after",
    "hash_ids",
)


class Shrinker:
    """Shrinks one case. `best` is the smallest so far, and `finding` what it shows.

    Sizes that are `fixed` stay. It stops after `most_runs` runs, or when `stop` says so: then `best` is small, but may
    not be the smallest.
    """

    def __init__(
        self,
        case: SearchCase,
        finding: Finding,
        shows: Shows,
        *,
        fixed: Mapping[str, Any] | None = None,
        most_runs: int = 5000,
        shrunk: Shrunk | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.best, self.finding = deepcopy(case), finding
        self.num_runs = 0
        self._shows, self._most_runs, self._shrunk, self._stop = shows, most_runs, shrunk, stop
        self._fixed = dict(fixed or {})
        self._fixed_env: Mapping[str, Any] = self._fixed.pop("env", {})
        self._tried: set[str] = set()

    @property
    def is_stopped(self) -> bool:
        """Whether it has used up its runs, or was asked to stop."""
        return self.num_runs >= self._most_runs or self._stop()

    def run(self) -> None:
        """Shrink until no change makes it smaller."""
        self._drop_later()
        for _ in range(MOST_ROUNDS):
            before = repr(self.best)
            self._drop_requests()
            self._scale()
            self._simplify_times()
            self._drop_options()
            self._lower_sizes()
            self._lower_requests()
            if self.is_stopped or repr(self.best) == before:
                break
        self._rename()

    def _try(self, candidate: SearchCase) -> bool:
        """Whether a changed case still shows the fault; it is the best from then on."""
        candidate = tidy(candidate)
        key = repr(candidate)
        if key in self._tried or self.is_stopped or candidate == self.best or not candidate["requests"]:
            return False
        if not self._keeps_fixed(candidate):
            return False
        self._tried.add(key)
        self.num_runs += 1
        finding = self._shows(candidate)
        if finding is None:
            return False
        self.best, self.finding = candidate, finding
        if self._shrunk is not None:
            self._shrunk(candidate, finding, self.num_runs)
        return True

    def _keeps_fixed(self, candidate: SearchCase) -> bool:
        env = candidate.get("env", {})
        return all((candidate.get(key) or 0) == (value or 0) for key, value in self._fixed.items()) and all(
            env.get(key) == value for key, value in self._fixed_env.items()
        )

    def _with(self, **changes: Any) -> SearchCase:
        return {**self.best, **changes}

    # Requests and time --------------------------------------------------------------------------------------

    def _drop_later(self) -> None:
        step = self.finding.step
        self._try(self._with(requests=[r for r in self.best["requests"] if r.get("arrival", 0) <= step]))

    def _drop_requests(self) -> None:
        """Drop ever smaller runs of requests, the last first."""
        size = len(self.best["requests"])
        while size > 1:
            size = max(1, size // 2)
            at = len(self.best["requests"])
            while at > 0 and not self.is_stopped:
                at = max(0, min(at, len(self.best["requests"])) - size)
                requests = self.best["requests"]
                if self._try(self._with(requests=[*requests[:at], *requests[at + size :]])):
                    self._drop_later()
            if size == 1:
                return

    def _simplify_times(self) -> None:
        requests = self.best["requests"]
        if self._try(self._with(requests=[{**r, "arrival": 0} for r in requests])):
            return
        first = min(r.get("arrival", 0) for r in requests)
        if first:
            self._try(self._with(requests=[{**r, "arrival": r.get("arrival", 0) - first} for r in requests]))

    # Scale --------------------------------------------------------------------------------------------------

    def _scale(self) -> None:
        while any(self._try(candidate) for candidate in self._halved()):
            pass
        while any(self._try(candidate) for candidate in self._fewer_seqs()):
            pass

    def _halved(self) -> Iterator[SearchCase]:
        """Everything by half: with smaller blocks, with fewer blocks, or with only the requests smaller."""
        best = self.best
        half = [
            {
                **r,
                "arrival": r.get("arrival", 0) // 2,
                "prompt": -(-r["prompt"] // 2),
                "output": -(-r["output"] // 2),
            }
            for r in best["requests"]
        ]
        sizes = {
            "max_num_batched_tokens": -(-best["max_num_batched_tokens"] // 2),
            "max_model_len": -(-best.get("max_model_len", 32768) // 2),
        }
        block, seqs = best.get("block_size", 64), best["max_num_seqs"]
        if block >= 2 * LEAST_BLOCK_SIZE and block % 2 == 0:
            smaller = {**best, **sizes, "block_size": block // 2}
            yield {**smaller, "requests": half}
            for count in (-(-seqs // 2), seqs // 2) if seqs > 1 else ():
                for subset in _subsets(half, count):
                    for blocks in (-(-best["num_blocks"] // 2), best["num_blocks"]):
                        yield {
                            **smaller,
                            "max_num_seqs": count,
                            "num_blocks": blocks,
                            "requests": [dict(r) for r in subset],
                        }
        yield {**best, **sizes, "num_blocks": -(-best["num_blocks"] // 2), "requests": half}
        extension = int(best.get("env", {}).get("FD_ENC_DEC_BLOCK_NUM", 2))
        yield {**best, **sizes, "num_blocks": sizes["max_model_len"] // block + extension, "requests": half}
        yield {**best, **sizes, "requests": half}
        yield {**best, "requests": half}

    def _fewer_seqs(self) -> Iterator[SearchCase]:
        best = self.best
        seqs, limit, requests = best["max_num_seqs"], best["max_num_batched_tokens"], best["requests"]
        each = {1, 2, best.get("num_speculative_tokens", 0) + 1, limit // seqs}
        for fewer in sorted({1, 2, 3, 4, seqs // 4, seqs // 2, seqs - 1}):
            if not 0 < fewer < seqs:
                continue
            limits = {limit - (seqs - fewer) * tokens for tokens in each} | {limit}
            for subset in _subsets(requests, fewer):
                for smaller in sorted(limits):
                    if smaller > 0:
                        yield self._with(
                            max_num_seqs=fewer,
                            max_num_batched_tokens=smaller,
                            requests=[dict(r) for r in subset],
                        )

    # Options and numbers ------------------------------------------------------------------------------------

    def _drop_options(self) -> None:
        for name in list(self.best.get("env", {})):
            env = {key: value for key, value in self.best["env"].items() if key != name}
            self._try(self._with(env=env))
        for key in ("prefix_caching", "spec_method", "prealloc_dec_block_slot_num_threshold"):
            self._try({name: value for name, value in self.best.items() if name != key})
        if all(r.get("join_after", 0) < NEVER for r in self.best["requests"]):
            self._try({name: value for name, value in self.best.items() if name != "max_steps"})
        for option in OPTIONS:
            requests = [
                {key: value for key, value in r.items() if key != option} for r in self.best["requests"]
            ]
            if self._try(self._with(requests=requests)):
                continue
            for i in range(len(self.best["requests"])):
                self._try(self._with_request(i, **{option: None}))

    def _lower_sizes(self) -> None:
        drafts = self.best.get("num_speculative_tokens", 0)
        if drafts:
            limit, seqs = self.best["max_num_batched_tokens"], self.best["max_num_seqs"]
            for fewer in range(drafts):
                smaller = limit - seqs * (drafts - fewer)
                if any(
                    self._try(self._with(num_speculative_tokens=fewer, max_num_batched_tokens=new))
                    for new in (smaller, limit)
                    if new > 0
                ):
                    break
        for key, least in (
            *(("max_num_batched_tokens", 1), ("max_num_seqs", 1), ("max_model_len", 16), ("num_blocks", 1)),
            ("shared_tokens", 0),
        ):
            if key in self.best:
                self._bisect(self.best[key], least, partial(self._with_size, key))
        block = self.best.get("block_size", 64)
        for smaller in (8, 16, 32):
            if LEAST_BLOCK_SIZE <= smaller < block and self._try(self._with(block_size=smaller)):
                break

    def _lower_requests(self) -> None:
        for key, least in (("output", 1), ("prompt", 1)):  # all at once, where they are alike
            values = {r[key] for r in self.best["requests"]}
            if len(values) == 1 and len(self.best["requests"]) > 1:
                self._bisect(values.pop(), least, partial(self._with_all, key))
        for i in range(len(self.best["requests"])):
            for key, least in _LEAST.items():
                value = self.best["requests"][i].get(key)
                if value is not None and value < NEVER:
                    self._bisect(value, least, partial(self._with_number, i, key))
            self._simplify_accepts(i)

    def _simplify_accepts(self, i: int) -> None:
        accepts = self.best["requests"][i].get("accepts")
        if not accepts:
            return
        for simpler in ([max(accepts)], [accepts[0]], accepts[: len(accepts) // 2], accepts[:-1]):
            if simpler and self._try(self._with_request(i, accepts=simpler)):
                return

    def _with_size(self, key: str, value: int) -> SearchCase:
        return self._with(**{key: value})

    def _with_all(self, key: str, value: int) -> SearchCase:
        return self._with(requests=[{**r, key: value} for r in self.best["requests"]])

    def _with_number(self, i: int, key: str, value: int) -> SearchCase:
        return self._with_request(i, **{key: value})

    def _with_request(self, i: int, **changes: Any) -> SearchCase:
        requests = [dict(r) for r in self.best["requests"]]
        requests[i].update(changes)
        return self._with(requests=requests)

    def _bisect(self, value: int, least: int, case_of: Callable[[int], SearchCase]) -> None:
        """The smallest number from `least` on that still shows it."""
        if value <= least or self._try(case_of(least)):
            return
        fails, shows = least, value
        while shows - fails > 1 and not self.is_stopped:
            middle = (fails + shows) // 2
            if self._try(case_of(middle)):
                shows = middle
            else:
                fails = middle

    def _rename(self) -> None:
        self._try(self._with(requests=[{**r, "id": f"r{i}"} for i, r in enumerate(self.best["requests"])]))


def _subsets(requests: Sequence[Mapping[str, Any]], count: int) -> Iterator[Sequence[Mapping[str, Any]]]:
    """All requests, or the first or last few: as many as sequences, or one more, which waits."""
    yielded = []
    for subset in (
        requests[:count],
        requests[-count:],
        requests[: count + 1],
        requests[-count - 1 :],
        requests,
    ):
        if subset not in yielded:
            yielded.append(subset)
            yield subset
