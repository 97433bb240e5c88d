"""FastDeploy's prefill and decode roles: a request gets its blocks, joins or is discarded outside `schedule()`.

The engine asks for the blocks (engine/common_engine.py and common_engine_prepare_mixin.py) until it gets them, then for
the other instance's answer. An event is written after the method has returned: the method waits for the manager's lock,
which a scheduling call in progress holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from .hooks import Hook

if TYPE_CHECKING:
    from .writer import Writer


class ManagerAdapter(Protocol):
    """The part of the `ResourceManagerV1` adapter that the roles use: the writer of the recording, the requests that
    hold their blocks and have not joined, those in their prefill, and its hook for a request that arrives.
    """

    writer: Writer
    preallocated: set[str]
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
            request_id = _first(args, kwargs, "request").request_id
            self.adapter.preallocated.add(request_id)
            self._write_event("preallocated", request_id)

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
            self.adapter.preallocated.discard(request_id)
            request = manager.requests.get(request_id)
            if request is not None and request.num_computed_tokens < request.need_prefill_tokens:
                self.adapter.prefilling.add(request_id)
            self._write_event("joined", request_id)

    def before_discard(self, manager: Any, args: Any, kwargs: Any) -> tuple[str, int] | None:
        request = manager.requests.get(_first(args, kwargs, "request_id"))
        return None if request is None else (request.request_id, len(request.output_token_ids))

    def after_discard(self, manager: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        if token is not None and token[0] in self.adapter.writer.numbers:
            self.adapter.preallocated.discard(token[0])
            self._write_event("discarded", token[0])
            self.adapter.writer.finish(token[0], "error", token[1])

    def _write_event(self, kind: str, request_id: str) -> None:
        if request_id in self.adapter.writer.numbers:
            self.adapter.writer.event(kind, request_id)


def _first(args: Any, kwargs: Any, name: str) -> Any:
    return args[0] if args else kwargs[name]
