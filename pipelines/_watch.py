"""Long work told of, and stopped, between any two operations of torch.

Libraries load and compute for minutes without asking anybody. Nothing of what they compute is
changed here.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..core.specs import ModelSpec

SECONDS = 0.2  # between two reports
SETTERS = ("set_", "_set_")  # of torch's own state, which must not be left as it is
PROMPT_PARTS = ("text_encoder", "mllm", "connectors")


class Watch(TorchFunctionMode):
    """Reports a text every so often while it is entered, at operations of torch in this thread.

    on_status: what reports; what it raises stops the work, and is raised again until the watch is
    left, since some libraries go on after an error.
    """

    def __init__(self, on_status: Callable[[str], None], text: str) -> None:
        super().__init__()
        self._on_status, self.text = on_status, text
        self._told = time.monotonic()
        self._stop: BaseException | None = None

    def say(self, text: str) -> None:
        """Reports another text: now, or when it is time if only its `1 of 9` is another."""
        if text != self.text:
            if _subject(text) != _subject(self.text):
                self._told = -SECONDS
            self.text = text
        self.tell()

    def tell(self) -> None:
        """Reports the text, if it is time."""
        if self._stop is not None:
            raise self._stop
        now = time.monotonic()
        if now - self._told < SECONDS:
            return
        self._told = now
        try:
            self._on_status(self.text)
        except BaseException as error:
            self._stop = error
            raise

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not getattr(func, "__name__", "").startswith(SETTERS):
            self.tell()
        return func(*args, **(kwargs or {}))

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        super().__exit__(kind, error, trace)
        if self._stop is not None and error is not self._stop:
            raise self._stop from error


def _subject(text: str) -> str:
    return re.sub(r"\d+ of \d+", "", text)


@contextmanager
def told_of_files(spec: ModelSpec, watch: Watch) -> Iterator[None]:
    """Has the watch say which file of a model is read, whichever library opens it."""
    import safetensors
    import safetensors.torch
    import transformers.modeling_utils

    thread = threading.get_ident()

    def told(opener: Any) -> Any:
        def open_file(filename: Any, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == thread:
                watch.say(f"Loading {spec.title}: {_called(spec, Path(filename))}")
            return opener(filename, *args, **kwargs)

        return open_file

    places: list[Any] = [safetensors, safetensors.torch, transformers.modeling_utils]
    openers = [(place, place.safe_open) for place in places if hasattr(place, "safe_open")]
    try:
        for place, opener in openers:
            place.safe_open = told(opener)
        yield
    finally:
        for place, opener in openers:
            place.safe_open = opener


def _called(spec: ModelSpec, file: Path) -> str:
    part = file.parent.name
    if part not in spec.components:
        return file.name
    files = sorted(file.parent.glob("*.safetensors"))
    return part if len(files) < 2 else f"{part}, file {files.index(file) + 1} of {len(files)}"


@contextmanager
def told_of_parts(
    spec: ModelSpec, modules: Mapping[str, Any], on_status: Callable[[str], None]
) -> Iterator[None]:
    """Reports which part of a model computes in this thread; on_status stops it by raising."""
    thread = threading.get_ident()
    doing = {
        id(module): _doing(spec, f"{name}.{path}")
        for name, part in modules.items()
        for path, module in part.named_modules()
    }
    watch = Watch(on_status, "Preparing")

    def before(module: Any, _args: Any) -> None:
        if threading.get_ident() == thread:
            watch.say(doing.get(id(module)) or watch.text)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


def _doing(spec: ModelSpec, path: str) -> str:
    part = path.partition(".")[0]
    if part in spec.lora.denoisers:
        return "Sampling"
    if part == "vocoder" or ".decoder" in path:
        return "Decoding"
    if "vae" in part:
        return "Encoding pictures" if ".encoder" in path else ""
    return "Encoding the prompt" if part.startswith(PROMPT_PARTS) else ""
