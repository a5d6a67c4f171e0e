"""Krea 2: its noise levels, guidance, prompts, versions and the files it is read from."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from trainer_krea2 import released as trainers_name

from ai_toolkit_inference import Engine, get_model
from ai_toolkit_inference.core.errors import CheckpointError, InvalidInputError
from ai_toolkit_inference.core.released_names import KREA2, released
from ai_toolkit_inference.core.versions import LATEST, Profile
from ai_toolkit_inference.engine.weights import tiny_folder
from ai_toolkit_inference.pipelines.krea2 import network_guidance, noise_levels


@pytest.fixture
def draw(engine, ask):
    """The picture's hash: draw("a cat", steps=2, ...)."""

    def draw(prompt="a photo of cat", model="krea2", weights="tiny", **fields):
        request = ask(model, prompt=prompt, **fields)
        request = replace(request, recipe=replace(request.recipe, weights=str(weights)))
        return hashlib.sha256(engine.sample(request).frames.tobytes()).hexdigest()

    return draw


@pytest.fixture
def folder(tmp_path):
    """A copy of the tiny checkpoint."""
    return shutil.copytree(tiny_folder(get_model("krea2")), tmp_path / "krea2")


@pytest.mark.parametrize(("side", "mu"), [(256, 0.5), (1024, 0.90625), (1280, 1.15)])
def test_noise_levels_are_shifted_by_the_number_of_tokens(side, mu):
    levels = noise_levels(side, side, 2)
    assert levels[0] == 1.0
    assert levels[1] == pytest.approx(np.exp(mu) / (np.exp(mu) + 1), abs=1e-6)
    assert levels[2] == 0.0


def test_guidance_counts_from_one_since_a_version():
    before = Profile("0.10.20", "")
    assert [network_guidance(LATEST, scale) for scale in (0.0, 1.0, 4.0)] == [0.0, 0.0, 3.0]
    assert [network_guidance(before, scale) for scale in (0.0, 1.0, 4.0)] == [0.0, 1.0, 4.0]


def test_the_negative_prompt_counts_above_one(draw):
    for scale in (0.5, 1.0):
        assert draw(guidance_scale=scale, negative_prompt="blurry") == draw(guidance_scale=1.0)
    assert draw(guidance_scale=1.5, negative_prompt="blurry") != draw(guidance_scale=1.5)


def test_versions_without_the_model_are_refused(ask, engine, trained_lora):
    request = ask("krea2")
    old = replace(request, recipe=replace(request.recipe, trainer_version="0.7.19"))
    with pytest.raises(InvalidInputError, match=r"0\.7\.19 does not have Krea 2 Raw yet"):
        engine.plan(old)
    ours = ask("krea2", adapters=((trained_lora("krea2", "0.12.26"), 1.0),))
    assert engine.plan(ours).profile.version == "0.12.26"


def test_a_lora_of_the_trainer_reaches_the_blocks_that_fuse_the_text(ask, engine, trained_lora):
    recipe = ask("krea2", adapters=((trained_lora("krea2", "0.12.26"), 1.0),)).recipe
    ((_, binding),) = engine.fit(recipe, recipe.adapters[0])
    blocks = {layer.path.split(".")[1] for layer in binding.bound}
    assert blocks == {"transformer_blocks", "text_fusion"}
    assert binding.complete


def test_a_prompt_counts_up_to_512_tokens(draw):
    for count, same in ((100, False), (600, True)):  # of one token each
        ends = [draw("q " * count + end, guidance_scale=1.0) for end in ("a dog", "a cat")]
        assert (ends[0] == ends[1]) is same


def test_a_start_from_latents_takes_the_last_steps(engine, ask):
    latents = torch.full((1, 16, 8, 8), 0.3)
    steps = []
    request = ask("krea2", steps=4, denoise=0.5, latents=latents)
    frames = engine.sample(request, on_step=steps.append, previews=True).frames
    assert [(step.index, step.total) for step in steps] == [(1, 2), (2, 2)]
    assert steps[-1].preview().shape == (8, 8, 3)
    assert not np.array_equal(frames, engine.sample(ask("krea2", steps=4)).frames)


# --- files -----------------------------------------------------------------------------------


def single_file(folder: Path, file: Path, without: str = "") -> Path:
    """The folder's network moved to a file named and shaped as the first release has it."""
    tensors = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    named = {trainers_name(name): tensor for name, tensor in tensors.items()}
    flat = {name: t.flatten() if name.endswith("mod.lin") else t for name, t in named.items()}
    save_file({name: tensor for name, tensor in flat.items() if name != without}, file)
    return file


def test_the_names_of_the_first_release(load):
    names = [name for name, _ in load("krea2").modules["transformer"].named_parameters()]
    assert [released(name, KREA2) for name in names] == list(map(trainers_name, names))


@pytest.mark.parametrize("place", ["krea2/raw.safetensors", "krea2.safetensors"])
def test_the_file_of_the_first_release_draws_the_same(draw, folder, place):
    file = single_file(folder, folder.parent / place)
    for dtype in ("fp32", "bf16"):
        assert draw(weights=file, dtype=dtype) == draw(dtype=dtype)


def test_files_that_are_no_whole_network(ask, folder):
    def load(**change):
        recipe = ask("krea2", prompt="").recipe
        Engine("cpu").model(replace(recipe, weights=str(single_file(copy, file, **change))))

    for change, message in (
        ({"without": "blocks.0.attn.wq.weight"}, r"1 tensors are missing.*blocks\.0\.attn"),
        ({"without": "txtfusion.projector.weight"}, "this one lacks transformer"),
    ):
        copy = shutil.copytree(folder, folder.parent / change["without"])
        file = copy / "raw.safetensors"
        with pytest.raises(CheckpointError, match=message):
            load(**change)
    copy = shutil.copytree(folder, folder.parent / "more")
    file = single_file(copy, copy / "raw.safetensors")
    save_file(load_file(file) | {"strange.weight": torch.ones(2)}, copy / "more.safetensors")
    recipe = ask("krea2").recipe
    with pytest.raises(CheckpointError, match=r"1 are unknown.*strange\.weight"):
        Engine("cpu").model(replace(recipe, weights=str(copy / "more.safetensors")))
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"vae has no \.safetensors weights"):
        Engine("cpu").model(replace(recipe, weights=str(file)))


def test_a_folder_as_the_hub_has_it(draw, folder):
    """Saved by transformers 5, which older ones cannot read by themselves."""
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"is_distilled": False, "patch_size": 2, "text_encoder_select_layers": [2, 5, 8]}
    (folder / "model_index.json").write_text(json.dumps(index))
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    text = config["text_config"]
    text["rope_parameters"] = text.pop("rope_scaling") | {"rope_theta": text.pop("rope_theta")}
    (folder / "text_encoder" / "config.json").write_text(json.dumps(config))
    tokenizer = folder / "tokenizer"
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (tokenizer / name).unlink()
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    listed = [token["content"] for token in settings.pop("added_tokens_decoder").values()]
    settings |= {"extra_special_tokens": listed}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
    assert draw(weights=folder) == draw()
