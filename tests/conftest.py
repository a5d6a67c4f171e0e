"""One thread, no network, tiny checkpoints in a folder of this run; an engine and LoRA files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# Before torch and huggingface_hub are imported, which read these once.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

RECIPE_FIELDS = ("quantize", "quantize_te", "layer_offloading")  # those that `ask` takes as well
GOLDEN_LORAS = Path(__file__).parent / "goldens" / "loras"


def _skip_without_the_trainer(error: Exception) -> None:
    from ai_toolkit_inference.core.errors import MissingDependencyError
    from ai_toolkit_inference.pipelines._vendor import trainer_folder

    missing = isinstance(error, MissingDependencyError) and "the trainer's own code" in str(error)
    if missing and trainer_folder() is None:
        pytest.skip(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Any:
    """Skips what needs a network that is the trainer's own where the trainer is not."""
    try:
        return (yield)
    except Exception as error:
        _skip_without_the_trainer(error)
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """As for the setup."""
    try:
        return (yield)
    except Exception as error:
        _skip_without_the_trainer(error)
        raise


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder that AITK_CACHE names in this run and in the processes it starts."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("AITK_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def engine() -> Any:
    """An engine on the CPU; whoever uses it may find any model or LoRA in it."""
    from ai_toolkit_inference import Engine

    return Engine("cpu")


@pytest.fixture(scope="session")
def load() -> Callable[..., Any]:
    """The loaded tiny model of an id, shared: leave it as it was."""
    import torch

    from ai_toolkit_inference import get_model
    from ai_toolkit_inference.engine.weights import tiny_folder
    from ai_toolkit_inference.pipelines._loading import load_model

    @cache
    def load(model: str, dtype: str = "fp32") -> Any:
        spec = get_model(model)
        return load_model(spec, tiny_folder(spec), None, dtype, torch.device("cpu"))

    return load


@pytest.fixture(scope="session")
def lora(load: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The file of a seeded random LoRA for a model's tiny weights."""
    from ai_toolkit_inference import get_model
    from ai_toolkit_inference.adapters.tiny import write_tiny_lora

    folder = tmp_path_factory.mktemp("loras")

    @cache
    def lora(model: str = "sd15", seed: int = 0) -> Path:
        path = folder / f"{model}-{seed}.safetensors"
        return write_tiny_lora(get_model(model), load(model).modules, path, seed)

    return lora


@pytest.fixture(scope="session")
def ask() -> Callable[..., Any]:
    """A small request: ask("sd15", adapters=((path, 0.5),), mode="live", steps=1, ...).

    With as many control images as the model needs.
    """
    from PIL import Image

    from ai_toolkit_inference import SampleRequest, list_models
    from ai_toolkit_inference.core.requests import AdapterRef, Recipe

    needed = {spec.id: spec.control_images.required for spec in list_models()}
    clips = {spec.id for spec in list_models() if spec.task == "video"}
    picture = Image.linear_gradient("L").convert("RGB")

    def ask(
        model: str = "sd15",
        weights: object = "tiny",
        dtype: str = "fp32",
        adapters: tuple[tuple[object, float], ...] = (),
        mode: str = "as_trainer",
        **fields: Any,
    ) -> SampleRequest:
        refs = tuple(AdapterRef(str(path), multiplier) for path, multiplier in adapters)
        given = {name: fields.pop(name) for name in RECIPE_FIELDS if name in fields}
        recipe = Recipe(model, str(weights), dtype, adapters=refs, mode=mode, **given)
        small = {"prompt": "a photo of cat", "width": 64, "height": 64, "steps": 2}
        small |= {"num_frames": 5} if model in clips else {}
        pictures = (picture,) * needed.get(model, 0)
        return SampleRequest(recipe, **(small | {"control_images": pictures} | fields))

    return ask


@pytest.fixture(scope="session")
def trained_lora() -> Callable[..., Path]:
    """A LoRA file that the trainer wrote for a model's tiny weights."""
    return lambda model, version="0.12.26": GOLDEN_LORAS / f"{model}-{version}.safetensors"


@pytest.fixture(scope="session")
def golden_bf16() -> None:
    """Skips where the processor rounds bf16 otherwise than the one that drew the goldens."""
    import json

    from arithmetic import bf16_arithmetic

    manifest = json.loads((GOLDEN_LORAS.parent / "manifest.json").read_text(encoding="utf-8"))
    if bf16_arithmetic() != manifest["0.12.26"]["bf16_arithmetic"]:
        pytest.skip("this processor's bf16 kernels round otherwise than those of the goldens")
