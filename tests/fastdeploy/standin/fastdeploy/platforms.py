"""What the worker's plugin asks for the platform."""

from types import SimpleNamespace

current_platform = SimpleNamespace(is_xpu=lambda: False)
