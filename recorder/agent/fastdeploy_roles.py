"""FastDeploy's prefill and decode roles: a request gets its blocks, joins or is discarded outside `schedule()`.

The engine asks for the blocks (engine/common_engine.py and common_engine_prepare_mixin.py) until they are given, then
for the other instance's answer. What happened is told after the method has returned: it waits for the manager's lock,
which a scheduling call in progress holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable

from .hooks import Hook

if TYPE_CHECKING:
    from .writer import Writer


class Roles:
    """Hooks of the roles' entry points of `ResourceManagerV1`, for its adapter.

    `asked` is its hook of a request that comes; `writer` gives the writer of the recording.
    """

    def __init__(
        self, asked: Callable[..., Any], writer: Callable[[], Writer], module: str, cls: str
    ) -> None:
        self.asked, self.writer = asked, writer
        self.hooks = (
            Hook(module, cls, "preallocate_resource_in_p", asked, self.after_preallocate),
            Hook(module, cls, "preallocate_resource_in_d", asked, self.after_preallocate),
            Hook(module, cls, "add_request_in_p", self.before_join, self.after_join),
            Hook(module, cls, "add_prefilled_request", self.before_prefilled, self.after_join),
            Hook(module, cls, "pre_recycle_resource", self.before_discard, self.after_discard),
        )

    def after_preallocate(self, manager: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        if result:
            self._tell("preallocated", _first(args, kwargs, "request").request_id)

    def before_join(self, manager: Any, args: Any, kwargs: Any) -> list[str]:
        requests = _first(args, kwargs, "requests")
        for request in requests:
            self.asked(manager, (request,), {})
        return [request.request_id for request in requests]

    def before_prefilled(self, manager: Any, args: Any, kwargs: Any) -> list[str]:
        request_id = _first(args, kwargs, "request_output").request_id
        return [request_id] if request_id in manager.requests else []

    def after_join(self, manager: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        for request_id in token or ():
            self._tell("joined", request_id)

    def before_discard(self, manager: Any, args: Any, kwargs: Any) -> tuple[str, int] | None:
        request = manager.requests.get(_first(args, kwargs, "request_id"))
        return None if request is None else (request.request_id, len(request.output_token_ids))

    def after_discard(self, manager: Any, args: Any, kwargs: Any, token: Any, result: Any) -> None:
        if token is not None and token[0] in self.writer().numbers:
            self._tell("discarded", token[0])
            self.writer().finish(token[0], "error", token[1])

    def _tell(self, kind: str, request_id: str) -> None:
        if request_id in self.writer().numbers:
            self.writer().event(kind, request_id)


def _first(args: Any, kwargs: Any, name: str) -> Any:
    return args[0] if args else kwargs[name]
