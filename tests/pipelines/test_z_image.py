"""Z-Image: what changed between trainer versions, its prompts, its latents and its files."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from ai_toolkit_inference import Engine, get_model
from ai_toolkit_inference.core.errors import CheckpointError, InvalidInputError
from ai_toolkit_inference.core.prompts import resolve
from ai_toolkit_inference.core.versions import PROFILES, Profile
from ai_toolkit_inference.engine.weights import find_weights, tiny_folder
from ai_toolkit_inference.pipelines.z_image import (
    masks_of,
    noise_levels,
    pipeline_guidance,
    z_image_scheduler,
)

OLD, NEW = PROFILES


def at(version: str) -> Profile:
    return Profile(version, "")


@pytest.fixture
def draw(engine, ask):
    """The picture's hash: draw("a cat", version="0.7.19", steps=2, ...)."""

    def draw(prompt="a photo of cat", version=NEW.version, model="zimage_turbo", **fields):
        request = ask(model, prompt=prompt, **fields)
        request = replace(request, recipe=replace(request.recipe, trainer_version=version))
        return hashlib.sha256(engine.sample(request).frames.tobytes()).hexdigest()

    return draw


# --- versions --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "levels"),
    [
        ("0.7.19", [1, 0.94737, 0.88235, 0.8, 0.69231, 0.54545, 0.33333, 0, 0]),
        ("0.10.23", [1, 0.94737, 0.88235, 0.8, 0.69231, 0.54545, 0.33333, 0, 0]),
        ("0.10.24", [1, 0.95455, 0.9, 0.83333, 0.75, 0.64286, 0.5, 0.3, 0]),
    ],
)
def test_the_steps_of_a_version(version, levels):
    scheduler = z_image_scheduler(at(version), 8)
    scheduler.set_timesteps(sigmas=noise_levels(8))
    assert scheduler.sigmas.tolist() == pytest.approx(levels, abs=1e-5)
    assert torch.equal(scheduler.timesteps, scheduler.sigmas[:-1] * 1000)
    scheduler.set_timesteps(sigmas=noise_levels(8, 0.5))
    assert scheduler.sigmas.tolist() == pytest.approx(levels[4:], abs=1e-5)


@pytest.mark.parametrize(
    ("version", "given"),
    [
        ("0.7.24", {-1: 0, 0: 0, 0.5: 0, 1: 0, 1.5: 1.5, 4: 4}),
        ("0.7.25", {-1: 0, 0: 0, 0.5: 0.5, 1: 1, 4: 4}),
        ("0.10.20", {0: 0, 0.5: 0.5, 1: 1, 4: 4}),
        ("0.10.21", {-1: 0, 0: 0, 0.5: 0, 1: 0, 1.5: 0.5, 4: 3}),
    ],
)
def test_the_guidance_of_a_version(version, given):
    assert {scale: pipeline_guidance(at(version), scale) for scale in given} == given


@pytest.mark.parametrize(("version", "side"), [("0.7.19", 96), ("0.9.13", 96), ("0.9.14", 112)])
def test_the_sides_of_a_version(ask, version, side):
    request = ask("zimage", width=127, height=119)
    settings = resolve(get_model("zimage"), request, at(version))
    assert (settings.width, settings.height) == (side, side)


def test_latents_off_a_versions_grid_are_refused(draw):
    latents = torch.zeros(1, 16, 14, 8)
    draw(latents=latents, width=0, height=0)
    with pytest.raises(InvalidInputError, match=r"64x112 px; for .* multiples of 32"):
        draw(latents=latents, width=0, height=0, version=OLD.version)


@pytest.mark.parametrize(
    ("version", "masked"), [("0.7.19", True), ("0.9.0", True), ("0.9.1", False)]
)
def test_older_versions_mask_where_nothing_is_hidden(load, version, masked):
    transformer, seen = load("zimage_turbo").modules["transformer"], []
    parts = [transformer.layers[0].attention, transformer.context_refiner[0].attention]
    inputs = [torch.zeros(16, 1, 8, 8)], torch.tensor([0.5]), [torch.zeros(3, 32)]
    with torch.no_grad(), masks_of(transformer, at(version)):
        hooks = [
            part.register_forward_pre_hook(
                lambda _, __, options: seen.append(options["attention_mask"]), with_kwargs=True
            )
            for part in parts
        ]
        transformer(*inputs)
    for hook in hooks:
        hook.remove()
    assert [mask is not None and bool(mask.all()) for mask in seen] == [masked] * 2
    assert not any(part._forward_pre_hooks for part in parts)


# --- prompts ---------------------------------------------------------------------------------


def test_a_prompt_is_a_message_of_the_chat_template(load):
    tokenizer = load("zimage_turbo").tokenizers["tokenizer"]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a cat"}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=True,
    )
    assert text == "<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(text).input_ids
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert (ids.count(start), ids.count(end), ids[0]) == (2, 1, start)
    assert tokenizer.decode(ids) == text
    odd = "A  RED house!! 1234 caf\u00e9 cafe\u0301 \u4f60\u597d\n\n tab\tx don't I'LL"
    ids = tokenizer(odd).input_ids
    # the same from every version of transformers: NFC, words apart, each digit by itself
    assert hashlib.sha256(str(ids).encode()).hexdigest()[:16] == "9ff79cd83f1c1fff"
    assert tokenizer.decode(ids) == odd.replace("e\u0301", "\u00e9")


def test_a_prompt_counts_up_to_512_tokens(draw):
    for count, same in ((300, False), (600, True)):  # of one token each
        ends = [draw("q " * count + end, steps=1) for end in ("a dog", "a cat")]
        assert (ends[0] == ends[1]) is same


@pytest.mark.parametrize(("version", "least"), [(OLD.version, 1.0), (NEW.version, 1.0)])
def test_the_negative_prompt_counts_with_guidance(draw, version, least):
    def pair(scale):
        options = {"guidance_scale": scale, "version": version}
        return draw(**options) == draw(negative_prompt="blurry", **options)

    assert pair(least)
    assert not pair(least + 0.5)


# --- latents ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [OLD.version, NEW.version])
def test_latents_are_the_start_of_fewer_steps(engine, ask, draw, load, version):
    one, two = (
        torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)
    )
    size = {"width": 0, "height": 0, "steps": 4, "version": version}
    assert draw(latents=one, **size) == draw(width=96, height=64, steps=4, version=version)
    half = [draw(latents=start, denoise=0.5, **size) for start in (one, two, one)]
    assert half[0] == half[2] != half[1]

    vae = load("zimage_turbo").modules["vae"]
    with torch.no_grad():
        picture = vae.decode(one).sample
    expected = ((picture / 2 + 0.5).clamp(0, 1) * 255)[0].permute(1, 2, 0).numpy()
    near, far = (
        np.abs(_frame(engine, ask, version, latents=one, denoise=share) - expected).mean()
        for share in (0.02, 1.0)
    )
    assert near < far / 2


def _frame(engine, ask, version, **fields):
    request = ask("zimage_turbo", width=0, height=0, steps=50, **fields)
    request = replace(request, recipe=replace(request.recipe, trainer_version=version))
    return engine.sample(request).frames[0]


def test_previews_show_the_latents_and_change_nothing(engine, ask):
    previews = []
    request = ask("zimage_turbo", width=96, height=64, steps=3)
    plain = engine.sample(request).frames
    seen = engine.sample(
        request, on_step=lambda step: previews.append(step.preview()), previews=True
    )
    assert np.array_equal(plain, seen.frames)
    assert [(preview.shape, preview.dtype) for preview in previews] == [((8, 12, 3), np.uint8)] * 3
    assert all(preview.std() > 0 for preview in previews)


# --- files -----------------------------------------------------------------------------------


def first_release(folder) -> dict[str, torch.Tensor]:
    """The transformer of a folder as its single file spells it."""
    stored = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    names = (
        ("all_x_embedder.2-1.", "x_embedder."),
        ("all_final_layer.2-1.", "final_layer."),
        (".to_out.0.", ".out."),
        (".norm_q.", ".q_norm."),
        (".norm_k.", ".k_norm."),
    )
    tensors = {}
    for name, tensor in stored.items():
        if ".to_q." in name:
            parts = [stored[name.replace("to_q", part)] for part in ("to_q", "to_k", "to_v")]
            tensors[name.replace("to_q", "qkv")] = torch.cat(parts)
        elif ".to_k." not in name and ".to_v." not in name:
            for ours, theirs in names:
                name = name.replace(ours, theirs)
            tensors[name] = tensor
    return tensors


def test_the_transformer_as_a_file_beside_the_other_parts(tmp_path, ask):
    folder = tiny_folder(get_model("zimage_turbo"))
    rest = shutil.copytree(folder, tmp_path / "rest")
    (rest / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    file = rest / "z_image.safetensors"
    save_file(first_release(folder), file)
    engine = Engine("cpu")
    pictures = [
        engine.sample(ask("zimage_turbo", weights=weights, dtype="bf16")).frames
        for weights in (folder, file)
    ]
    assert np.array_equal(*pictures)


def test_a_file_that_lacks_a_tensor_is_refused(tmp_path, ask):
    rest = shutil.copytree(tiny_folder(get_model("zimage_turbo")), tmp_path / "rest")
    tensors = first_release(rest)
    del tensors["layers.0.feed_forward.w2.weight"]
    save_file(tensors, rest / "z_image.safetensors")
    with pytest.raises(CheckpointError, match="lacks"):
        Engine("cpu").sample(ask("zimage_turbo", weights=rest / "z_image.safetensors"))


def test_a_text_encoder_with_a_tensor_missing_is_refused(tmp_path, ask):
    folder = shutil.copytree(tiny_folder(get_model("zimage_turbo")), tmp_path / "model")
    file = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    assert all(name.startswith("model.") for name in tensors)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 of \d+ tensors.*layers\.1\.mlp\.up_proj"):
        Engine("cpu").sample(ask("zimage_turbo", weights=folder))


def test_deturbo_is_put_together_from_two_repositories(tmp_path, monkeypatch, ask):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    spec = get_model("zimage_deturbo")
    with pytest.raises(CheckpointError, match="could not be fetched from Hugging Face"):
        find_weights(spec, "huggingface", print)
    for repository, parts in (
        (spec.repo_id, ["transformer"]),
        (spec.rest_repo_id, ["tokenizer", "text_encoder", "vae", "scheduler", "model_index.json"]),
    ):
        home = tmp_path / f"models--{repository.replace('/', '--')}"
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text("0" * 40)
        snapshot = home / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        for part in parts:
            (snapshot / part).symlink_to(tiny_folder(spec) / part)
    first, second = (find_weights(spec, "huggingface", print) for _ in range(2))
    assert first == second
    engine = Engine("cpu")
    pictures = [
        engine.sample(ask("zimage_deturbo", weights=weights)).frames
        for weights in ("huggingface", "tiny")
    ]
    assert np.array_equal(*pictures)
