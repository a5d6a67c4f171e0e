"""ComfyUI's entry point and the public names, each imported on first use.

Nothing may be imported here eagerly: ComfyUI, pytest and `import ai_toolkit_inference` all run this
file, under three different module names.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core.requests import SampleRequest
    from .core.results import SampleResult
    from .engine import Engine
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
    from .pipelines._registry import get_model, list_models

__version__ = "0.1.0"

__all__ = [
    "NODE_CLASS_MAPPINGS",
    "NODE_DISPLAY_NAME_MAPPINGS",
    "Engine",
    "SampleRequest",
    "SampleResult",
    "__version__",
    "get_model",
    "list_models",
]

_MODULE_OF = {
    "NODE_CLASS_MAPPINGS": ".nodes",
    "NODE_DISPLAY_NAME_MAPPINGS": ".nodes",
    "Engine": ".engine",
    "SampleRequest": ".core.requests",
    "SampleResult": ".core.results",
    "get_model": ".pipelines._registry",
    "list_models": ".pipelines._registry",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
