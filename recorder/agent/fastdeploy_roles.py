"""FastDeploy's prefill and decode roles: a request gets its blocks, joins or is discarded outside `schedule()`.

The engine asks for the blocks (engine/common_engine.py and common_engine_prepare_mixin.py) until it gets them, then for
the other instance's answer. An event is written after the method has returned: the method waits for the manager's lock,
which a scheduling call in progress holds.
"""

from __future__ import annotations

from types import FrameType
from typing import TYPE_CHECKING, Any, Callable, Protocol

from .hooks import Hook

if TYPE_CHECKING:
    from .writer import Writer


class ManagerAdapter(Protocol):
    """The part of the `ResourceManagerV1` adapter that the roles use: the writer of the recording, its order of calls,
    the requests in their prefill, and its hook for a request that arrives.
    """

    writer: Writer
    order: Any
    prefilling: set[str]

    def before_add_request(self, manager: Any, args: Any, kwargs: Any) -> None: ...


class Roles:
    """Hooks of those `ResourceManagerV1` methods that only the roles use, for its adapter."""

    def __init__(self, adapter: ManagerAdapter, module: str, cls: str) -> None:
        self.adapter = adapter
        before_add = adapter.before_add_request
        self.hooks = (
            Hook(module, cls, "preallocate_resource_in_p", before_add, self.after_preallocate),
            Hook(module, cls, "preallocate_resource_in_d", before_add, self.after_preallocate),
            Hook(module, cls, "add_request_in_p", self.before_join, self.after_join),
            Hook(module, cls, "add_prefilled_request", self.before_prefilled, self.after_join),
            Hook(module, cls, "pre_recycle_resource", self.before_discard, self.after_discard),
        )

    def after_preallocate(self, manager: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        if result:
            self._write_event("preallocated", _first(args, kwargs, "request").request_id)

    def before_join(self, manager: Any, args: Any, kwargs: Any) -> list[str]:
        requests = _first(args, kwargs, "requests")
        for request in requests:
            self.adapter.before_add_request(manager, (request,), {})
        return [request.request_id for request in requests]

    def before_prefilled(self, manager: Any, args: Any, kwargs: Any) -> list[str]:
        request_id = _first(args, kwargs, "request_output").request_id
        return [request_id] if request_id in manager.requests else []

    def after_join(self, manager: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        for request_id in token or ():
            request = manager.requests.get(request_id)
            if request is not None and request.num_computed_tokens < request.need_prefill_tokens:
                self.adapter.prefilling.add(request_id)
            self._write_event("joined", request_id)

    def before_discard(self, manager: Any, args: Any, kwargs: Any) -> tuple[str, int] | None:
        request = manager.requests.get(_first(args, kwargs, "request_id"))
        return None if request is None else (request.request_id, len(request.output_token_ids))

    def after_discard(self, manager: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        if token is not None and token[0] in self.adapter.writer.numbers:
            self._write_event("discarded", token[0])
            self.adapter.writer.finish(token[0], "error", token[1])

    def _write_event(self, kind: str, request_id: str) -> None:
        """Without the order of calls; that has these events too, when they happen."""
        adapter = self.adapter
        sections = adapter.order.roles
        if adapter.order.stand_in is not None and sections.knows_all:
            return
        sections.note(kind, request_id)
        if request_id in adapter.writer.numbers:
            adapter.writer.event(kind, request_id)


class RoleSections:
    """The sections of the scheduler's lock that only the roles have, for the order of calls.

    `write` writes a change of the queues before the next call. `preallocated`: requests that hold their blocks and have
    not joined.
    """

    def __init__(self, write: Callable[[str, str], Any]) -> None:
        self.write = write
        self.preallocated: dict[str, None] = {}
        self.knows_all = False
        """Whether a call has begun: from then on all changes are written."""
        self.known = False
        self.entering: dict[str, Callable[[Any, FrameType], None]] = {
            "add_prefilled_request": self._about_to_join,
            "pre_recycle_resource": self._about_to_discard,
        }
        self.ending: dict[str, Callable[[Any, FrameType], None]] = {
            "preallocate_resource_in_p": self._preallocated,
            "preallocate_resource_in_d": self._preallocated,
            "add_request_in_p": self._joined,
            "add_prefilled_request": self._joined_in_d,
            "pre_recycle_resource": self._discarded,
        }

    def begin(self) -> None:
        """A recording begins."""
        self.preallocated.clear()
        self.knows_all = self.known = False

    def note(self, kind: str, request_id: str) -> None:
        """Follow a change."""
        if kind == "preallocated":
            self.preallocated[request_id] = None
        else:
            self.preallocated.pop(request_id, None)

    def find(self, manager: Any) -> list[str]:
        """Those that the first call finds, by who holds blocks."""
        self.knows_all = True
        self.preallocated.clear()
        if manager.config.scheduler_config.splitwise_role != "mixed":
            queued = {request.request_id for request in (*manager.running, *manager.waiting)}
            held = [r.request_id for r in list(manager.requests.values()) if r.block_tables]
            self.preallocated.update(dict.fromkeys(name for name in held if name not in queued))
        return list(self.preallocated)

    def _change(self, kind: str, request_id: str) -> None:
        self.note(kind, request_id)
        self.write(kind, request_id)

    def _preallocated(self, manager: Any, frame: FrameType) -> None:
        request = frame.f_locals["request"]
        if manager.requests.get(request.request_id) is request and request.block_tables:
            self._change("preallocated", request.request_id)

    def _joined(self, manager: Any, frame: FrameType) -> None:
        for request in frame.f_locals["requests"]:
            self._change("joined", request.request_id)

    def _about_to_join(self, manager: Any, frame: FrameType) -> None:
        self.known = frame.f_locals["request_output"].request_id in manager.requests

    def _joined_in_d(self, manager: Any, frame: FrameType) -> None:
        if self.known:
            self._change("joined", frame.f_locals["request_output"].request_id)

    def _about_to_discard(self, manager: Any, frame: FrameType) -> None:
        self.known = frame.f_locals["request_id"] in manager.requests

    def _discarded(self, manager: Any, frame: FrameType) -> None:
        if self.known:
            self._change("discarded", frame.f_locals["request_id"])


def _first(args: Any, kwargs: Any, name: str) -> Any:
    return args[0] if args else kwargs[name]
