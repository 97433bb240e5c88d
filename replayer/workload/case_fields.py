"""Reads the members of a case's JSON objects. Each has a type and bounds; a wrong one is refused with its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.printable import printable
from fdtrace.replayer.workload.case_variables import LARGEST, VARIABLES

LONGEST_NAME = 1000
"""Characters of an id."""
MOST_LISTED = 8
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
"""Name of a key in engines and published traces -> its name here."""


def as_json(value: Any) -> str:
    """A value as JSON writes it, shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, str):
        return f"{value!r:.40}"
    return "a list" if isinstance(value, Sequence) else f"{value!r:.40}"


class Fields:
    """One JSON object. Its members are read by name; a null counts as a missing member."""

    def __init__(self, value: Any, where: str = "") -> None:
        """`where`: its place, as `requests[3]`; empty for the case itself. UsageError if the value is no object."""
        self.where = where
        if not isinstance(value, Mapping):
            raise UsageError(
                f"`{where}` is no object", why=f"it is {as_json(value)}", hint='{"prompt": 100, "output": 20}'
            )
        self._value = value

    def place(self, name: str) -> str:
        """The place of a member."""
        return f"{self.where}.{name}" if self.where else name

    def has(self, name: str) -> bool:
        """Whether there is such a member."""
        return self._value.get(name) is not None

    def value(self, name: str) -> Any:
        """The member as it was read; None: there is none."""
        return self._value.get(name)

    def whole(self, name: str, default: int | None, *, least: int = 0) -> int:
        """A whole number. UsageError if it is no whole number, out of bounds, or missing without a default."""
        value = self._value.get(name)
        if value is None:
            if default is not None:
                return default
            why = "it is null" if name in self._value else ""
            raise UsageError(f"this workload lacks `{self.place(name)}`", why=why, hint="a whole number")
        return _whole(value, self.place(name), least)

    def wholes(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers; empty if there is no such member."""
        value = self._value.get(name)
        if value is None:
            return ()
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise UsageError(
                f"`{self.place(name)}` must be a list of whole numbers, 0 or more, not {as_json(value)}",
                hint="[1, 0, 2]",
            )
        for i, number in enumerate(value):
            if type(number) is not int or not 0 <= number <= LARGEST:
                raise UsageError(
                    f"`{self.place(name)}` must be a list of whole numbers, 0 or more",
                    why=f"`{self.place(name)}[{i}]` is {as_json(number)}",
                )
        return tuple(value)

    def notes(self, name: str) -> list[str]:
        """Texts for people, made safe to print; empty if there is no such member."""
        value = self._value.get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(note, str) for note in value):
            raise UsageError(f"`{self.place(name)}` must be a list of texts, not {as_json(value)}")
        return [printable(note, LONGEST_NAME) for note in value]

    def flag(self, name: str, default: bool) -> bool:
        """True or false; no other value counts as one of them."""
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
        """A text that is the name of something: printable, and not too long."""
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
        """An object; empty if there is no such member."""
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
    if value > LARGEST:
        raise UsageError(f"`{place}` must be at most {LARGEST}", why="engines count in 32 bits")
    return value


def refuse_unknown_keys(case: Mapping[str, Any], sizes: Sequence[str], request_keys: Sequence[str]) -> None:
    """UsageError if a case has keys that nobody reads. It lists them, each with the nearest key that is read."""
    unknown = [(name, _nearest(name, sizes)) for name in case if name not in sizes]
    env = case.get("env")
    if isinstance(env, Mapping):
        unknown += [(f"env.{name}", _nearest(name, VARIABLES)) for name in env if name not in VARIABLES]
    requests = case.get("requests")
    for i, request in enumerate(requests if isinstance(requests, list) else ()):
        if isinstance(request, Mapping):
            unknown += [
                (f"requests[{i}].{name}", _nearest(name, request_keys))
                for name in request
                if name not in request_keys
            ]
    if not unknown:
        return
    shown = ", ".join(f"`{place:.80}`" for place, _ in unknown[:MOST_LISTED])
    more = f" and {len(unknown) - MOST_LISTED} more" if len(unknown) > MOST_LISTED else ""
    hints = "; ".join(
        f"for `{place:.80}` write {nearest}" for place, nearest in unknown[:MOST_LISTED] if nearest
    )
    raise UsageError(
        f"this workload has keys that nobody reads: {shown}{more}",
        why="they would change nothing, and the result would be that of another workload",
        hint=hints or "take them out",
    )


def _nearest(name: str, keys: Sequence[str]) -> str:
    if name in OTHER_NAMES:
        return OTHER_NAMES[name]
    matches = get_close_matches(name.lower(), {key.lower(): key for key in keys}, 1, 0.6)
    return next((f"`{key}`" for key in keys if matches and key.lower() == matches[0]), "")
