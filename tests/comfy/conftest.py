"""One real ComfyUI with the pack, for all tests in this folder."""

from __future__ import annotations

import importlib.util
import json
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

HERE = Path(__file__).parent
SCRIPT = HERE.parent.parent / "scripts" / "comfyui.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.comfy)


def load_script(path: Path) -> ModuleType:
    """A file outside of every package, as a module."""
    spec = importlib.util.spec_from_file_location(f"scripts_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def comfyui() -> ModuleType:
    """scripts/comfyui.py."""
    return load_script(SCRIPT)


@pytest.fixture(scope="session")
def comfy(comfyui: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The running server: url, base (its models, input and output folders), log."""
    server = comfyui.start_server(tmp_path_factory.mktemp("comfyui"), offline=True)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def webp_texts() -> Callable[[Path], dict[str, str]]:
    """webp_texts(file): what an animated webp carries, in the order in which it was written."""

    def read(file: Path) -> dict[str, str]:
        with Image.open(file) as image:
            fields = sorted(image.getexif().items(), reverse=True)
        return dict(text.split(":", 1) for _, text in fields)

    return read


@pytest.fixture(scope="session")
def ask(comfy: Any) -> Callable[..., Any]:
    """ask(path) gets, ask(path, body) posts: the JSON answer, None where there is none."""

    def send(path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{comfy.url}/{path.lstrip('/')}", data)
        with urllib.request.urlopen(request, timeout=60) as response:
            text = response.read()
        return json.loads(text) if text else None

    return send
