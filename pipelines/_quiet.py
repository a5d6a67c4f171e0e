"""Silence for the libraries while we use them; their errors still show."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars, casting advice or deprecations from diffusers and transformers."""
    # which transformers may import, and which misses triton then
    logging.getLogger("torchao").setLevel(logging.ERROR)
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(logs, logs.get_verbosity(), logs.is_progress_bar_enabled()) for logs in libraries]
    try:
        for logs in libraries:
            logs.set_verbosity_error()
            logs.disable_progress_bar()
        with warnings.catch_warnings():
            # diffusers 0.42 prefers `dtype`, which 0.39 does not know
            warnings.filterwarnings("ignore", message=".*torch_dtype.*")
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            yield
    finally:
        for logs, verbosity, bar in before:
            logs.set_verbosity(verbosity)
            if bar:
                logs.enable_progress_bar()
