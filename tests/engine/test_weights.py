"""Checkpoints that are damaged, incomplete or another model's: one clear error, nothing run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ai_toolkit_inference import Engine, get_model
from ai_toolkit_inference.core.errors import CheckpointError, OutputError
from ai_toolkit_inference.engine.weights import tiny_folder


@pytest.fixture
def copy(tmp_path):
    """A copy of a model's tiny checkpoint, to be damaged."""

    def copy(model: str = "sd15", name: str = "checkpoint") -> Path:
        return Path(shutil.copytree(tiny_folder(get_model(model)), tmp_path / name))

    return copy


def only(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def drop(part: str, key: str):
    def change(folder: Path) -> None:
        path = only(folder / part)
        tensors = load_file(path)
        del tensors[next(name for name in tensors if key in name)]
        save_file(tensors, path, {"format": "pt"})

    return change


def widen(part: str, key: str):
    def change(folder: Path) -> None:
        path = only(folder / part)
        tensors = load_file(path)
        name = next(name for name in tensors if key in name)
        tensors[name] = torch.zeros(tensors[name].shape[0] + 1, *tensors[name].shape[1:])
        save_file(tensors, path, {"format": "pt"})

    return change


def truncate(part: str):
    def change(folder: Path) -> None:
        path = only(folder / part)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return change


def write(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


def remove(name: str):
    def change(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def index(**entries):
    def change(folder: Path) -> None:
        path = folder / "model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return change


def take(part: str, model: str, as_part: str):
    def change(folder: Path) -> None:
        shutil.rmtree(folder / as_part)
        shutil.copytree(tiny_folder(get_model(model)) / part, folder / as_part)

    return change


def pickled(folder: Path) -> None:
    for path in folder.rglob("*.safetensors"):
        torch.save(load_file(path), path.with_suffix(".bin"))
        path.unlink()


DAMAGES = {
    "no index": ("sd15", remove("model_index.json"), "no model_index.json"),
    "broken index": ("sd15", write("model_index.json", "{"), "names no pipeline class"),
    "index of a list": ("sd15", write("model_index.json", "[1]"), "names no pipeline class"),
    "index without a class": ("sd15", write("model_index.json", "{}"), "names no pipeline class"),
    "index of FLUX": (
        "sd15",
        index(_class_name="FluxPipeline"),
        "is a FluxPipeline checkpoint; sd15 needs a StableDiffusionPipeline",
    ),
    "a part of lists": ("sd15", index(unet=[[1]]), "code of its own"),
    "pickled weights": ("sd15", pickled, "no .safetensors weights; pickled ones"),
    "no UNet": ("sd15", remove("unet"), "unet has no .safetensors weights"),
    "a UNet without a tensor": ("sd15", drop("unet", "conv_in"), "unet lacks 1 tensors"),
    "a VAE without a tensor": ("sd15", drop("vae", "conv_out"), "vae lacks 1 tensors"),
    "a transformer without a tensor": ("flux", drop("transformer", "x_embedder"), "lacks 1 tens"),
    "CLIP without a tensor": ("sd15", drop("text_encoder", "fc1.bias"), "lacks 1 of"),
    "T5 without a tensor": ("flux", drop("text_encoder_2", "wi_0"), "lacks 1 of"),
    "T5 without its vocabulary": ("flux", drop("text_encoder_2", "shared"), "lacks 1 of"),
    "a UNet of another shape": ("sd15", widen("unet", "conv_in.bias"), "could not be loaded"),
    "CLIP of another shape": ("sd15", widen("text_encoder", "fc1.bias"), "could not be loaded"),
    "half a UNet file": ("sd15", truncate("unet"), "could not be loaded"),
    "half a CLIP file": ("sd15", truncate("text_encoder"), "could not be loaded"),
    "half a T5 file": ("flux", truncate("text_encoder_2"), "could not be loaded"),
    "a broken configuration": ("sd15", write("unet/config.json", "{"), "could not be loaded"),
    "no configuration": ("sd15", remove("text_encoder/config.json"), "could not be loaded|lacks"),
    "no CLIP vocabulary": ("sd15", remove("tokenizer/vocab.json"), "lacks its configuration or"),
    "empty CLIP merges": ("sd15", write("tokenizer/merges.txt", ""), "lacks its configuration or"),
    "an empty CLIP vocabulary": ("sd15", write("tokenizer/vocab.json", "{}"), "could not be load"),
    "a broken CLIP vocabulary": ("sd15", write("tokenizer/vocab.json", "{"), "could not be load"),
    "no tokenizer length": ("sd15", remove("tokenizer/tokenizer_config.json"), "configuration or"),
    "no tokenizer": ("sdxl", remove("tokenizer_2"), "tokenizer_2 lacks its configuration or"),
    "no T5 tokenizer": ("flux", remove("tokenizer_2"), "tokenizer_2 lacks its configuration or"),
    "no T5 vocabulary": ("flux", remove("tokenizer_2/tokenizer.json"), "lacks its configuration"),
    "a broken T5 vocabulary": ("flux", write("tokenizer_2/tokenizer.json", "{"), "could not be"),
    "no second encoder": ("sdxl", index(text_encoder_2=[None, None]), "has no text_encoder_2"),
    "T5 in CLIP's place": (
        "sd15",
        take("text_encoder_2", "flux", "text_encoder"),
        "lacks 196 of 196|could not be loaded",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder(copy, ask, damage):
    model, change, message = DAMAGES[damage]
    folder = copy(model)
    change(folder)
    engine = Engine("cpu")
    with pytest.raises(CheckpointError, match=message) as refusal:
        engine.sample(ask(model, weights=folder))
    assert str(folder) in str(refusal.value)
    assert engine.loads == 0
    assert engine.sample(ask(model)).frames.any()  # nothing of it is left in the process


def test_weights_of_another_model_under_the_right_name(copy, ask):
    folder = copy()
    theirs = tiny_folder(get_model("sdxl"))
    shutil.copy(only(theirs / "unet"), only(folder / "unet"))
    with pytest.raises(CheckpointError, match="could not be loaded as sd15"):
        Engine("cpu").sample(ask(weights=folder))


@pytest.mark.parametrize("model", ["sd15", "sdxl", "flux"])
@pytest.mark.parametrize("folder_of", ["sd15", "sdxl", "flux"])
def test_a_folder_of_another_model(ask, model, folder_of):
    request = ask(model, weights=tiny_folder(get_model(folder_of)), steps=1)
    if model == folder_of:
        assert Engine("cpu").sample(request).frames.any()
        return
    engine = Engine("cpu")
    with pytest.raises(CheckpointError, match=f"; {model} needs a "):
        engine.sample(request)
    assert engine.loads == 0


def test_code_in_a_checkpoint_is_not_run(copy, ask, tmp_path, monkeypatch):
    """Not even if it could be imported, as from the working directory."""
    mark = tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w')\nfrom diffusers import UNet2DConditionModel as Mine\n"
    for module in ("unet/mine.py", "mine.py", "pipeline.py"):
        folder = copy(name=module.replace("/", "-"))
        (folder / module).write_text(code)
        monkeypatch.syspath_prepend(folder)
        for part in ("unet", "vae", "scheduler", "text_encoder", "image_encoder"):
            index(**{part: ["mine", "Mine"]})(folder)
            with pytest.raises(CheckpointError, match="code of its own, which is not run"):
                Engine("cpu").sample(ask(weights=folder))
    assert not mark.exists()


@pytest.mark.parametrize("weights", ["", "none", "/none/at/all", "x" * 5000, "stabilityai/sdxl"])
def test_weights_that_are_not_there(ask, weights):
    with pytest.raises(CheckpointError, match=r"no weights at|no model_index"):
        Engine("cpu").sample(ask(weights=weights))


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        ("sd15", "model.ckpt", "pickled checkpoints can run code"),
        ("sd15", "model.gguf", "not a .safetensors file"),
        ("flux", "model.safetensors", "not loaded from a single file"),
    ],
)
def test_single_files_that_are_not_read(ask, tmp_path, model, name, message):
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match=message):
        Engine("cpu").sample(ask(model, weights=tmp_path / name))


def test_without_network_the_hub_is_a_clear_error(ask, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"FLUX\.1-dev could not be fetched"):
        Engine("cpu").sample(ask("flux", weights="huggingface"))


def test_a_cache_that_cannot_be_written(ask, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AITK_CACHE", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="AITK_CACHE"):
        Engine("cpu").sample(ask())


# --- what is in memory -----------------------------------------------------------------------


def test_the_engine_knows_what_it_holds(copy, ask):
    engine, folder = Engine("cpu"), copy()
    ours = ask()
    others = [ask("sdxl"), ask(dtype="bf16"), ask(weights=folder), ask(weights="huggingface")]
    assert not engine.holds(ours.recipe)
    engine.sample(ours)
    assert engine.holds(ours.recipe)
    assert engine.holds(ask(adapters=(("a.safetensors", 1.0),), seed=3).recipe)
    assert [engine.holds(request.recipe) for request in others] == [False] * 4
    engine.sample(others[2])
    assert engine.holds(others[2].recipe)
    assert not engine.holds(ours.recipe)
    engine.unload()
    assert not engine.holds(others[2].recipe)


def test_two_folders_are_two_models(copy, ask):
    engine = Engine("cpu")
    requests = [ask(weights=copy(name=name), steps=1) for name in ("a", "b")]
    drop_bias = load_file(only(Path(requests[1].recipe.weights) / "unet"))
    drop_bias["conv_out.bias"] += 1
    save_file(drop_bias, only(Path(requests[1].recipe.weights) / "unet"), {"format": "pt"})
    drawn = [engine.sample(request).frames.tobytes() for request in (*requests, requests[0])]
    assert drawn[0] == drawn[2] != drawn[1]
    assert engine.loads == 3


def test_a_refused_folder_leaves_the_model_in_memory(copy, ask, tmp_path):
    engine = Engine("cpu")
    engine.sample(ask())
    for weights in (tmp_path / "none", tiny_folder(get_model("sdxl"))):
        with pytest.raises(CheckpointError):
            engine.sample(ask(weights=weights))
    engine.sample(ask())
    assert engine.loads == 1
