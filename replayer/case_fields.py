"""The members of a case's JSON objects, each taken with its type and bounds, or refused with its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from fdtrace.recorder.errors import UsageError
from fdtrace.replayer.case_variables import VARIABLES

MOST = 2**31 - 1
"""The largest number of a case: engines count in 32 bits."""
LONGEST_NAME = 1000
"""Characters of an id."""
MOST_SAID = 8
"""Unknown keys named in one error."""

OTHER_NAMES = {
    "enable_chunked_prefill": 'env: {"FD_DISABLE_CHUNKED_PREFILL": 1}',
    "enable_prefix_caching": "prefix_caching",
    "num_gpu_blocks_override": "num_blocks",
    "max_num_tokens": "max_num_batched_tokens",
    "max_batch_size": "max_num_seqs",
    "splitwise_role": "role",
    "request_id": "id",
    "input_length": "prompt",
    "num_prompt_tokens": "prompt",
    "prompt_tokens": "prompt",
    "output_length": "output",
    "num_output_tokens": "output",
    "output_tokens": "output",
    "timestamp": "arrival, in steps",
    "arrived_step": "arrival",
}
"""What engines and published traces call a key -> what it is called here."""


def as_json(value: Any) -> str:
    """A value as JSON would have it, short."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, str):
        return f"{value!r:.40}"
    return "a list" if isinstance(value, Sequence) else f"{value!r:.40}"


class Fields:
    """One JSON object, whose members are asked for by name. A null is as good as a member that is not there."""

    def __init__(self, value: Any, where: str = "") -> None:
        """`where`: its place, as `requests[3]`; empty for the case itself. UsageError where it is no object."""
        self.where = where
        if not isinstance(value, Mapping):
            raise UsageError(
                f"`{where}` is no object", why=f"it is {as_json(value)}", hint='{"prompt": 100, "output": 20}'
            )
        self._value = value

    def place(self, name: str) -> str:
        """Where a member stands."""
        return f"{self.where}.{name}" if self.where else name

    def has(self, name: str) -> bool:
        """Whether there is such a member."""
        return self._value.get(name) is not None

    def whole(self, name: str, default: int | None, *, least: int = 0) -> int:
        """A whole number; UsageError where it is none, out of bounds, or lacks and has no default."""
        value = self._value.get(name)
        if value is None:
            if default is not None:
                return default
            why = "it is null" if name in self._value else ""
            raise UsageError(f"this workload lacks `{self.place(name)}`", why=why, hint="a whole number")
        return _whole(value, self.place(name), least)

    def wholes(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers; none where there is no such member."""
        value = self._value.get(name)
        if value is None:
            return ()
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise UsageError(
                f"`{self.place(name)}` must be a list of whole numbers, 0 or more, not {as_json(value)}",
                hint="[1, 0, 2]",
            )
        for i, one in enumerate(value):
            if type(one) is not int or not 0 <= one <= MOST:
                raise UsageError(
                    f"`{self.place(name)}` must be a list of whole numbers, 0 or more",
                    why=f"`{self.place(name)}[{i}]` is {as_json(one)}",
                )
        return tuple(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false; nothing else is taken for one of them."""
        value = self._value.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise UsageError(
                f"`{self.place(name)}` must be true or false, not {as_json(value)}",
                hint="without quotation marks",
            )
        return value

    def text(self, name: str, default: str) -> str:
        """A text that is not empty."""
        value = self._value.get(name)
        if value is None:
            return default
        if not isinstance(value, str) or not value:
            raise UsageError(
                f"`{self.place(name)}` must be a text, not {as_json(value)}", hint=f'as "{default}"'
            )
        return value

    def name(self, name: str, default: str) -> str:
        """A text that something is called by."""
        value = self.text(name, default)
        if len(value) > LONGEST_NAME:
            raise UsageError(
                f"`{self.place(name)}` has {len(value)} characters", hint=f"{LONGEST_NAME} at most"
            )
        if not value.isprintable():
            raise UsageError(
                f"`{self.place(name)}` is {value!a:.80}", why="it has characters that cannot be shown"
            )
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        """An object; an empty one where there is none."""
        value = self._value.get(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise UsageError(
                f"`{self.place(name)}` must be an object, not {as_json(value)}",
                hint='{"FD_ENC_DEC_BLOCK_NUM": 2}',
            )
        return value


def _whole(value: Any, place: str, least: int) -> int:
    if type(value) is not int:
        raise UsageError(
            f"`{place}` must be a whole number, not {as_json(value)}",
            why="a text is none, and neither is true" if isinstance(value, (str, bool)) else "",
            hint="digits alone, without quotation marks",
        )
    if value < 0:
        raise UsageError(
            f"`{place}` must be a whole number, {least} or more, not {as_json(value)}",
            hint=f"{least} or more",
        )
    if value < least:
        raise UsageError(f"`{place}` must be at least {least}, not {value}", hint=f"{least} or more")
    if value > MOST:
        raise UsageError(f"`{place}` must be at most {MOST}", why="engines count in 32 bits")
    return value


def refuse_unknown_keys(case: Mapping[str, Any], sizes: Sequence[str], request_keys: Sequence[str]) -> None:
    """UsageError where a case has keys that nobody reads: all of them, each with the nearest one that is read."""
    found = [(name, _nearest(name, sizes)) for name in case if name not in sizes]
    env = case.get("env")
    if isinstance(env, Mapping):
        found += [(f"env.{name}", _nearest(name, VARIABLES)) for name in env if name not in VARIABLES]
    requests = case.get("requests")
    for i, request in enumerate(requests if isinstance(requests, list) else ()):
        if isinstance(request, Mapping):
            found += [
                (f"requests[{i}].{name}", _nearest(name, request_keys))
                for name in request
                if name not in request_keys
            ]
    if not found:
        return
    shown = ", ".join(f"`{place:.80}`" for place, _ in found[:MOST_SAID])
    more = f" and {len(found) - MOST_SAID} more" if len(found) > MOST_SAID else ""
    meant = "; ".join(f"for `{place:.80}` write {near}" for place, near in found[:MOST_SAID] if near)
    raise UsageError(
        f"this workload has keys that nobody reads: {shown}{more}",
        why="they would change nothing, and the result would be that of another workload",
        hint=meant or "take them out",
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    if name in OTHER_NAMES:
        return OTHER_NAMES[name]
    near = get_close_matches(name.lower(), {one.lower(): one for one in known}, 1, 0.6)
    return next((f"`{one}`" for one in known if near and one.lower() == near[0]), "")
