"""FLUX.2 and Chroma: prompts, noise levels, guidance, and the files they are released in."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trainer_bfl  # whose table of names is not ours
from safetensors.torch import load_file, save_file

from ai_toolkit_inference import get_model
from ai_toolkit_inference.core.errors import CheckpointError, InvalidInputError
from ai_toolkit_inference.engine.weights import tiny_folder
from ai_toolkit_inference.pipelines._loading import load_model, part_path
from ai_toolkit_inference.pipelines._skeleton import skeleton
from ai_toolkit_inference.pipelines.chroma import _whole_mask
from ai_toolkit_inference.pipelines.flux2 import (
    encode_prompt,
    from_tokens,
    is_guided,
    mistral_chat,
    noise_levels,
    qwen3_chat,
    to_tokens,
)

FILES = {
    "flux2": "flux2-dev.safetensors",
    "flux2_klein_4b": "flux-2-klein-base-4b.safetensors",
    "chroma": "Chroma1-Base.safetensors",
}


def context_of(model):
    return SimpleNamespace(model=model)


# --- prompts -----------------------------------------------------------------------------------


def test_dev_is_told_how_to_answer(load):
    chat = mistral_chat(load("flux2").tokenizers["tokenizer"], "a [IMG]cat")
    assert chat.startswith("<s>[SYSTEM_PROMPT]You are an AI that reasons about image descriptions.")
    assert "object relationships, object\nattribution and actions without" in chat
    assert chat.endswith("[/SYSTEM_PROMPT][INST]a cat[/INST]")


def test_klein_is_not_to_think(load):
    chat = qwen3_chat(load("flux2_klein_4b").tokenizers["tokenizer"], "a cat")
    assert chat.startswith("<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\n<think>\n\n")


@pytest.mark.parametrize("model", ["flux2", "flux2_klein_4b"])
def test_three_states_of_512_tokens(load, model):
    loaded = load(model)
    width = getattr(loaded.modules["text_encoder"].config, "text_config", None)
    width = (width or loaded.modules["text_encoder"].config).hidden_size
    for prompt in ("a cat", "a cat " * 600):
        assert encode_prompt(context_of(loaded), prompt).shape == (1, 512, 3 * width)


# --- sampling ----------------------------------------------------------------------------------


def test_noise_levels_depend_on_the_size():
    levels = noise_levels(4096, 4)
    shift = float(np.exp(1.15))
    expected = [shift / (shift + 1 / t - 1) for t in (1.0, 0.75, 0.5, 0.25)]
    assert levels == pytest.approx([*expected, 0.0], abs=1e-6)
    assert noise_levels(256, 4)[1] < levels[1]


def test_only_klein_is_guided_and_above_one():
    assert [is_guided(get_model("flux2_klein_9b"), scale) for scale in (1.0, 1.1)] == [False, True]
    assert not is_guided(get_model("flux2"), 4.0)


def test_the_first_trainer_has_no_klein(engine, ask):
    request = ask("flux2_klein_4b")
    old = request.recipe.__class__("flux2_klein_4b", "tiny", "fp32", trainer_version="0.7.19")
    with pytest.raises(InvalidInputError, match=r"0\.7\.19 does not have FLUX\.2 Klein base 4B"):
        engine.plan(request.__class__(old, "a cat"))


def test_tokens_are_four_latents_each_normalised(load):
    vae = load("flux2").modules["vae"]
    latents = torch.randn(1, 32, 6, 8, generator=torch.Generator().manual_seed(0))
    tokens = to_tokens(vae, latents)
    assert tokens.shape == (1, 128, 3, 4)
    assert torch.allclose(from_tokens(vae, tokens), latents, atol=1e-5)
    first = (latents[0, 0, 0, 1] - vae.bn.running_mean[1]) / (vae.bn.running_var[1] + 1e-4).sqrt()
    assert tokens[0, 1, 0, 0] == pytest.approx(float(first), abs=1e-5)


@pytest.mark.parametrize(("model", "channels"), [("flux2", 32), ("chroma", 16)])
def test_few_steps_stay_near_given_latents(engine, ask, load, model, channels):
    vae = load(model).modules["vae"]
    start = torch.randn(1, channels, 8, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        picture = vae.decode(start).sample
    expected = ((picture / 2 + 0.5).clamp(0, 1) * 255)[0].permute(1, 2, 0).numpy()
    near, far = (
        np.abs(engine.sample(request).frames[0] - expected).mean()
        for request in (
            ask(model, latents=start, denoise=share, width=0, height=0, steps=50)
            for share in (0.02, 1.0)
        )
    )
    assert near < far / 2


@pytest.mark.parametrize("model", ["flux2", "flux2_klein_4b", "chroma"])
def test_steps_have_previews(engine, ask, model):
    steps = []
    engine.sample(ask(model), lambda step: steps.append(step.preview()), previews=True)
    assert [step.shape for step in steps] == [(8, 8, 3)] * 2


def test_long_prompts_of_chroma_are_counted_in_the_models_dtype():
    def attended(tokens: int, dtype: torch.dtype) -> list[int]:
        text = (torch.arange(512) < tokens)[None].to(dtype)
        whole = _whole_mask(text, 4)[0]
        assert whole[512:].all()
        return whole[:512].nonzero().flatten().tolist()

    assert attended(9, torch.bfloat16) == list(range(10))
    assert attended(259, torch.float32) == list(range(260))
    assert attended(259, torch.bfloat16) == [*range(259), 260]  # 259 rounds to 260
    assert attended(512, torch.bfloat16) == list(range(512))


# --- files -------------------------------------------------------------------------------------


@pytest.fixture
def released(tmp_path):
    """A folder with the released file of a model, and the rest beside it."""

    def released(model: str) -> Path:
        tiny = tiny_folder(get_model(model))
        rest = tmp_path / "rest"
        parts = ("text_encoder", "tokenizer", *(["vae"] if model == "chroma" else []))
        for part in parts:
            shutil.copytree(tiny / part, rest / part)
        shutil.copy(tiny / "model_index.json", rest)
        file = rest.rename(tmp_path / Path(FILES[model]).stem).with_suffix(".safetensors")
        trainer_bfl._save(trainer_bfl._network(trainer_bfl._tensors(tiny, "transformer")), file)
        if model != "chroma":
            vae = trainer_bfl._vae(trainer_bfl._tensors(tiny, "vae"))
            trainer_bfl._save(vae, tmp_path / "ae.safetensors")
        return file

    return released


@pytest.mark.parametrize("model", FILES)
def test_a_released_file_is_the_same_model(engine, ask, released, model):
    whole, file = (
        engine.sample(ask(model, weights=weights, dtype="bf16")).frames
        for weights in ("tiny", released(model))
    )
    assert np.array_equal(whole, file)


def test_a_released_file_without_its_vae(engine, ask, released):
    file = released("flux2")
    file.with_name("ae.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"vae has no \.safetensors weights"):
        engine.sample(ask("flux2", weights=file))


def test_a_released_file_that_lacks_a_tensor(engine, ask, released):
    file = released("flux2")
    tensors = load_file(file)
    del tensors["single_blocks.0.linear2.weight"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"1 tensors are missing, 0 are unknown \(single_bl"):
        engine.sample(ask("flux2", weights=file))


@pytest.mark.parametrize("model", [*FILES, "flux2_diffusers"])
def test_modules_are_named_alike_with_and_without_weights(load, model):
    spec = get_model(model)
    empty = skeleton(spec, tiny_folder(spec))["transformer"]
    loaded = load(model).modules["transformer"]
    assert {name for name, _ in empty.named_modules()} == {
        name for name, _ in loaded.named_modules()
    }
    assert all(parameter.is_meta for parameter in empty.parameters())


def test_what_the_repository_has_in_another_version_comes_from_elsewhere(tmp_path):
    spec, fetched = get_model("flux2"), tmp_path / "snapshots" / "abc"
    (fetched / "text_encoder").mkdir(parents=True)
    assert part_path(spec, fetched, "text_encoder") == dict(spec.elsewhere)["text_encoder"]
    assert part_path(spec, fetched, "vae") == str(fetched / "vae")
    own = get_model("flux2_diffusers")
    assert part_path(own, fetched, "text_encoder") == str(fetched / "text_encoder")
    (tmp_path / "mine" / "text_encoder").mkdir(parents=True)
    mine = part_path(spec, tmp_path / "mine", "text_encoder")
    assert mine == str(tmp_path / "mine" / "text_encoder")


def test_both_precisions_load(load):
    for dtype in ("fp32", "bf16"):
        model = load("flux2_klein_9b", dtype)
        assert model.modules["vae"].bn.running_var.dtype == model.dtype
    spec = get_model("flux2_klein_9b")
    fp16 = load_model(spec, tiny_folder(spec), None, "fp16", torch.device("cpu"))
    assert fp16.modules["transformer"].dtype == torch.float16
