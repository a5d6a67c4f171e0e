"""From a request to pixels: load, keep, switch adapters, seed, render, write."""

from .engine import Engine

__all__ = ["Engine"]
