"""What is told while the engine works, and that whoever is told can stop it anywhere."""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch

from ai_toolkit_inference import Engine, get_model, list_models
from ai_toolkit_inference.core.errors import MissingDependencyError
from ai_toolkit_inference.engine.weights import tiny_folder
from ai_toolkit_inference.pipelines import _loading, _watch

IDS = [spec.id for spec in list_models()]
# one of each way to load
LOADED = (
    "chroma", "flex2", "flux", "flux2_klein_4b", "hidream", "krea2", "ltx2", "lumina2",
    "omnigen2", "qwen_image_edit", "sd15", "sdxl", "wan21_i2v_14b", "wan22_14b_t2v", "zimage",
)  # fmt: skip
CPU = torch.device("cpu")


class Stopped(Exception):
    """What a callback raises here."""


@pytest.fixture(autouse=True)
def always(monkeypatch) -> None:
    """Reports at every operation of torch."""
    monkeypatch.setattr(_watch, "SECONDS", 0)


def stop_at(number: int) -> Callable[[Any], None]:
    """A callback that raises when it is called for the number-th time, from 0, and never again."""
    counter = count()

    def on_status(_: Any) -> None:
        if next(counter) == number:
            raise Stopped(number)

    return on_status


def stop_at_text(start: str) -> Callable[[str], None]:
    """A callback that raises when it is told this."""

    def on_status(text: str) -> None:
        if text.startswith(start):
            raise Stopped(text)

    return on_status


def bits(model: Any) -> dict[str, bytes]:
    return {
        f"{name}.{key}": tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, module in model.modules.items()
        for key, tensor in module.state_dict().items()
    }


def load(model: str, on_status: Callable[[str], None] = lambda _: None) -> Any:
    spec = get_model(model)
    return _loading.load_model(spec, tiny_folder(spec), None, "bf16", CPU, on_status)


# --- what is told -----------------------------------------------------------------------------


@pytest.mark.parametrize("model", IDS)
def test_every_model_tells_its_parts_and_shows_its_steps(model, ask, monkeypatch) -> None:
    monkeypatch.setattr(_watch, "SECONDS", 3600)  # new things are told at once all the same
    said: list[str] = []
    shown: list[np.ndarray] = []
    Engine("cpu").sample(
        ask(model, steps=3),
        on_step=lambda step: shown.append(step.preview()),
        on_status=said.append,
        previews=True,
    )
    spec = get_model(model)
    assert len(shown) == 3
    for picture in shown:
        assert picture.dtype == np.uint8
        assert picture.ndim == 3 and picture.shape[2] == 3 and min(picture.shape[:2]) >= 2
        assert picture.std() > 0
    parts = [name for name in spec.components if any((tiny_folder(spec) / name).glob("*.safe*"))]
    for name in parts:
        assert [text for text in said if text.startswith(f"Loading {spec.title}: {name}")], name
    phases = [text for text in said if text in ("Encoding the prompt", "Sampling", "Decoding")]
    assert list(dict.fromkeys(phases)) == ["Encoding the prompt", "Sampling", "Decoding"]


def test_files_of_a_part_are_counted(ask, tmp_path) -> None:
    import diffusers

    spec = get_model("flux")
    part = diffusers.FluxTransformer2DModel.from_pretrained(tiny_folder(spec) / "transformer")
    folder = tmp_path / "model"
    folder.mkdir()
    for name in tiny_folder(spec).iterdir():
        (folder / name.name).symlink_to(name)
    (folder / "transformer").unlink()
    part.save_pretrained(folder / "transformer", max_shard_size="100KB")
    files = len(list((folder / "transformer").glob("*.safetensors")))
    assert files > 2
    said: list[str] = []
    Engine("cpu").model(ask("flux", weights=folder).recipe)
    _loading.load_model(spec, folder, None, "fp32", CPU, said.append)
    told = {text for text in said if "transformer, file" in text}
    start = f"Loading {spec.title}: transformer, file"
    assert told == {f"{start} {number + 1} of {files}" for number in range(files)}


@pytest.mark.parametrize("qtype", ["qfloat8", "uint4", "convrot8"])
def test_quantizing_tells_each_part_and_its_layers(qtype, ask, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("AITK_CACHE", str(tmp_path))
    said: list[str] = []
    engine = Engine("cpu")
    engine.sample(ask("flux", quantize=qtype, steps=1), on_status=said.append)
    for part in ("transformer", "text_encoder_2"):
        start = rf"Quantizing {part} to {qtype}, (\d+) of (\d+) layers"
        told = [re.fullmatch(start, text) for text in said]
        counts = [(int(found[1]), int(found[2])) for found in told if found]
        done, total = zip(*counts, strict=True)
        assert sorted(done) == list(done) and {*done} == set(range(total[0])) and len({*total}) == 1


# --- stopping ---------------------------------------------------------------------------------


@pytest.mark.parametrize("model", LOADED)
def test_loading_stops_between_any_two_operations(model) -> None:
    said: list[str] = []
    whole = bits(load(model, said.append))
    initializers = dict(vars(torch.nn.init))
    assert len(said) > 1000
    for share in (0.0, 0.2, 0.4, 0.6, 0.8, 0.97):
        with pytest.raises(Stopped):
            load(model, stop_at(int(len(said) * share)))
        assert torch.get_default_dtype() == torch.float32
        assert torch.is_grad_enabled()
        assert vars(torch.nn.init) == initializers
    assert bits(load(model)) == whole


@pytest.mark.parametrize("model", ["sd15", "flux", "wan22_14b_t2v"])
def test_no_tensor_is_loaded_after_the_stop(model, monkeypatch) -> None:
    """Also where a library goes on after errors."""
    said: list[str] = []
    load(model, said.append)
    for share in (0.3, 0.5, 0.9):
        told = count()
        stop = stop_at(int(len(said) * share))

        def on_status(text: str, told: Any = told, stop: Any = stop) -> None:
            next(told)
            stop(text)

        with pytest.raises(Stopped):
            load(model, on_status)
        assert next(told) == int(len(said) * share) + 1


def test_a_library_that_swallows_the_stop_does_not_keep_it() -> None:
    with pytest.raises(Stopped), _watch.Watch(stop_at(0), "Working"), suppress(Stopped):
        torch.zeros(2)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95])
def test_a_stopped_quantization_is_begun_anew(share, ask, monkeypatch, tmp_path) -> None:
    request = ask("flux", quantize="qfloat8", steps=1)
    drawn = Engine("cpu").sample(request).frames
    monkeypatch.setenv("AITK_CACHE", str(tmp_path))  # nothing is packed there yet
    engine, said = Engine("cpu"), []
    engine.sample(ask("flux", steps=1))
    other = tmp_path / "other"
    monkeypatch.setenv("AITK_CACHE", str(other))
    Engine("cpu").sample(request, on_status=said.append)
    quantizing = [i for i, text in enumerate(said) if text.startswith("Quantizing")]
    at = quantizing[int(len(quantizing) * share)]
    monkeypatch.setenv("AITK_CACHE", str(tmp_path))
    with pytest.raises(Stopped, match=str(at)):
        engine.sample(request, on_status=stop_at(at))
    assert engine.loaded is None
    assert np.array_equal(engine.sample(request).frames, drawn)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("model", ["flux", "sd15"])
def test_a_stopped_merge_leaves_the_base_as_it_was(model, share, ask, lora) -> None:
    first, second = (((lora(model, seed), 1.0),) for seed in (0, 1))
    fresh = Engine("cpu")
    drawn = {
        adapters: fresh.sample(ask(model, adapters=adapters, steps=1)).frames.tobytes()
        for adapters in (first, second, ())
    }
    said: list[str] = []
    fresh.sample(ask(model, adapters=first, steps=1))
    fresh.sample(ask(model, adapters=second, steps=1), on_status=said.append)
    applying = [i for i, text in enumerate(said) if text == "Applying the adapters"]
    engine = Engine("cpu")
    engine.sample(ask(model, adapters=first, steps=1))
    with pytest.raises(Stopped):
        at = applying[int(len(applying) * share)]
        engine.sample(ask(model, adapters=second, steps=1), on_status=stop_at(at))
    for adapters, pixels in drawn.items():
        request = ask(model, adapters=adapters, steps=1)
        assert engine.sample(request).frames.tobytes() == pixels
    assert engine.loads == 1


@pytest.mark.parametrize("model", ["sd15", "flux", "wan21_1b", "ltx2", "krea2_o_edit"])
@pytest.mark.parametrize("phase", ["Moving", "Encoding", "Sampling", "Decoding"])
def test_a_sample_stops_in_every_phase(model, phase, ask) -> None:
    engine = Engine("cpu")
    drawn = engine.sample(ask(model)).frames
    with pytest.raises(Stopped):
        engine.sample(ask(model), on_status=stop_at_text(phase))
    assert np.array_equal(engine.sample(ask(model)).frames, drawn)
    assert engine.loads == 1
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_a_step_stops_within(ask) -> None:
    """Between the blocks of the network, not only after it."""
    told: list[str] = []
    Engine("cpu").sample(ask("flux", steps=1), on_status=told.append)
    assert told.count("Sampling") > 50


# --- what is missing --------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["diffusers", "transformers"])
def test_a_missing_library_is_named_with_the_command(package, ask, monkeypatch) -> None:
    import_ = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named '{package}'", name=package)
        return import_(name, *args, **kwargs)

    engine = Engine("cpu")
    request = ask("sd15")
    engine.plan(request)
    tiny_folder(get_model("sd15"))
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"No module named.*run `.*install\.py`, or"):
        engine.sample(request)


def test_the_missing_trainer_is_named_with_the_command(monkeypatch, tmp_path) -> None:
    from ai_toolkit_inference.core.missing import PACK
    from ai_toolkit_inference.pipelines import _vendor

    monkeypatch.setattr(_vendor, "VENDOR", tmp_path / "none")
    monkeypatch.delenv("AI_TOOLKIT_PATH", raising=False)
    with pytest.raises(MissingDependencyError, match=r"run `.*install\.py`") as refusal:
        _vendor.trainer_module("any.module")
    assert str(PACK / "install.py") in str(refusal.value)
    assert (PACK / "install.py").is_file()
