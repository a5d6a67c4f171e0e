"""From a request to pixels: load, keep, switch adapters, seed, render, write. No ComfyUI, no HTTP."""

from .engine import Engine

__all__ = ["Engine"]
