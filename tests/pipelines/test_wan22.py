"""Wan 2.2: experts, first frames, timesteps per token, tiles, and pairs of LoRA files."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ai_toolkit_inference import get_model
from ai_toolkit_inference.adapters.bind import bind
from ai_toolkit_inference.adapters.read import read_adapter
from ai_toolkit_inference.core.errors import InvalidInputError
from ai_toolkit_inference.core.prompts import resolve
from ai_toolkit_inference.core.requests import AdapterRef
from ai_toolkit_inference.core.versions import PROFILES, get_profile
from ai_toolkit_inference.pipelines import _wan, _wan22

OLD, NEW = PROFILES
PROFILES_BETWEEN = {"0.10.21": False, "0.10.22": True}
SIDES = {"high": "transformer", "low": "transformer_2"}


def picture(width: int = 48, height: int = 80) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def context_of(model, image=None, **settings):
    given = {"width": 96, "height": 64, "num_frames": 9, "switches": ()} | settings
    return SimpleNamespace(
        model=model,
        settings=SimpleNamespace(**given),
        control_images=(image,) if image else (),
        profile=NEW,
    )


@pytest.mark.parametrize(
    ("model", "asked", "drawn"),
    [("wan22_14b_t2v", 8, 9), ("wan22_14b_i2v", 8, 5), ("wan22_5b", 8, 5), ("wan22_5b", 2, 1)],
)
def test_how_many_frames_are_drawn(engine, ask, model, asked, drawn):
    pictures = (picture(),) if model == "wan22_14b_i2v" else ()
    request = ask(model, num_frames=asked, fps=8, steps=1, control_images=pictures)
    result = engine.sample(request)
    assert result.frames.shape == (drawn, 64, 64, 3)
    assert result.info["num_frames"] == drawn


@pytest.mark.parametrize(("model", "width"), [("wan22_14b_t2v", 112), ("wan22_5b", 96)])
def test_sides_are_floored(ask, model, width):
    settings = resolve(get_model(model), ask(model, width=127, height=95))
    assert (settings.width, settings.height) == (width, 80 if model != "wan22_5b" else 64)


def test_which_models_take_a_picture(ask):
    for model, pictures in (("wan22_14b_i2v", ()), ("wan22_14b_t2v", (picture(),))):
        with pytest.raises(InvalidInputError, match=f"{model} .*control image"):
            resolve(get_model(model), ask(model, control_images=pictures))
    for pictures in ((), (picture(),)):
        resolve(get_model("wan22_5b"), ask("wan22_5b", control_images=pictures))


# --- networks --------------------------------------------------------------------------------


class Network:
    def __init__(self):
        self.seen = []

    def __call__(self, **given):
        self.seen.append(given)
        return (given["hidden_states"],)


@pytest.mark.parametrize("shown", [None, torch.ones(1, 20, 2, 8, 12)])
def test_the_high_noise_expert_works_down_to_875(shown):
    pipeline = SimpleNamespace(transformer=Network(), transformer_2=Network())
    predict = _wan22.by_experts(pipeline, shown)
    for timestep in (999, 875, 874, 0):
        predict(torch.zeros(1, 16, 2, 8, 12), torch.tensor(timestep), "text")
    times = [
        [int(given["timestep"]) for given in network.seen]
        for network in (pipeline.transformer, pipeline.transformer_2)
    ]
    assert times == [[999, 875], [874, 0]]
    channels = {given["hidden_states"].shape[1] for given in pipeline.transformer.seen}
    assert channels == {16 if shown is None else 36}


def test_timesteps_of_tokens_are_told_in_the_masks_precision():
    pipeline = SimpleNamespace(transformer=Network())
    for dtype, told in ((torch.float32, 999), (torch.bfloat16, 1000)):
        mask = torch.ones(1, 1, 2, 4, 6, dtype=dtype)
        mask[:, :, 0] = 0
        _wan22.by_tokens(pipeline, mask)(torch.zeros(1, 48, 2, 4, 6), torch.tensor(999), "text")
        times = pipeline.transformer.seen[-1]["timestep"]
        assert times.dtype == dtype
        assert times.tolist() == [[0] * 6 + [told] * 6]


def test_a_first_frame_stays_through_the_steps():
    mask = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1, 1)
    before, after = torch.full((1, 48, 2, 1, 1), 3.0), torch.full((1, 48, 2, 1, 1), 5.0)
    kept = _wan22.keeping(mask)(before, after)
    assert kept[0, :, 0].unique().tolist() == [3.0]
    assert kept[0, :, 1].unique().tolist() == [5.0]


@pytest.mark.parametrize("model", ["wan22_14b_t2v", "wan22_14b_i2v"])
def test_both_experts_draw(engine, ask, load, model):
    pictures = (picture(),) if model == "wan22_14b_i2v" else ()
    parts = load(model).modules
    weights = [part.proj_out.weight for name, part in parts.items() if name in SIDES.values()]
    assert len(weights) == 2 and not torch.equal(*weights)
    used = {}
    for name in SIDES.values():
        given = engine.model(ask(model).recipe).modules[name]
        hook = given.register_forward_hook(
            lambda *_, name=name: used.__setitem__(name, used.get(name, 0) + 1)
        )
        try:
            engine.sample(ask(model, num_frames=1, steps=4, control_images=pictures))
        finally:
            hook.remove()
    assert sum(used.values()) == 8  # each step twice, for guidance
    assert min(used.values()) >= 2


# --- pictures --------------------------------------------------------------------------------


def test_a_first_frame_is_stretched(load):
    context = context_of(load("wan22_5b", "bf16"), picture())
    frame = _wan22.first_frame(context)
    assert frame.shape == (1, 3, 1, 64, 96) and frame.dtype == torch.bfloat16
    stretched = np.asarray(picture().resize((96, 64), Image.Resampling.LANCZOS))
    expected = (torch.from_numpy(stretched.copy()) / 255).to(torch.bfloat16) * 2 - 1
    assert torch.equal(frame[0, :, 0], expected.permute(2, 0, 1))


def test_the_14b_is_shown_a_mask_and_the_frame_drawn_from_the_global_generator(load):
    model = load("wan22_14b_i2v", "bf16")
    context = context_of(model, picture())
    torch.manual_seed(7)
    shown = _wan22.condition(context, model.modules["vae"])
    assert shown.shape == (1, 20, 3, 8, 12) and shown.dtype == torch.bfloat16
    assert shown[:, :4, 0].unique().tolist() == [1]
    assert shown[:, :4, 1:].unique().tolist() == [0]
    torch.manual_seed(7)
    assert torch.equal(_wan22.condition(context, model.modules["vae"]), shown)
    other = _wan22.condition(context, model.modules["vae"])
    assert not torch.equal(other[:, 4:], shown[:, 4:])


def test_the_5b_starts_with_the_frame(load):
    model = load("wan22_5b", "bf16")
    noise = torch.randn(1, 48, 3, 4, 6)
    torch.manual_seed(7)
    latents, mask = _wan22.begun(context_of(model, picture()), model.modules["vae"], noise)
    assert latents.dtype == mask.dtype == torch.bfloat16
    assert torch.equal(latents[:, :, 1:], noise[:, :, 1:].bfloat16())
    assert not torch.equal(latents[:, :, 0], noise[:, :, 0].bfloat16())
    assert mask.shape == (1, 1, 3, 4, 6)
    assert [mask[:, :, frame].unique().tolist() for frame in range(3)] == [[0], [1], [1]]


@pytest.mark.parametrize("model", ["wan21_1b", "wan22_14b_t2v", "wan22_5b"])
def test_only_newer_versions_decode_in_tiles(load, model):
    vae = load(model).modules["vae"]
    scale = vae.config.scale_factor_spatial
    latents = torch.randn(1, vae.config.z_dim, 1, 2, 288 // scale)
    context = context_of(load(model))
    context.settings.low_vram = True
    frames = {}
    for version, tiled in ({OLD.version: False, NEW.version: True} | PROFILES_BETWEEN).items():
        context.profile = replace(get_profile(NEW.version), version=version)
        assert _wan.is_tiled(context) == tiled
        with torch.no_grad():
            pipeline = SimpleNamespace(vae=vae)
            frames[tiled] = _wan.decoded(context, pipeline, latents, _wan.is_tiled(context))
        assert not vae.use_tiling
    assert frames[True].shape == frames[False].shape
    assert (frames[True] != frames[False]).any()
    context.settings.low_vram = False
    assert not _wan.is_tiled(context)


@pytest.mark.parametrize("model", ["wan21_1b", "wan22_14b_t2v", "wan22_5b"])
def test_vae_tiling_is_low_vram_for_the_vae_alone(engine, ask, model):
    def draw(low_vram, tiling):
        request = ask(model, width=288, num_frames=1, switches=(("vae_tiling", tiling),))
        recipe = replace(request.recipe, low_vram=low_vram)
        return engine.sample(replace(request, recipe=recipe)).frames

    both, tiles, plain = draw("on", False), draw("off", True), draw("off", False)
    assert (both == tiles).all()
    assert (both != plain).any()


# --- LoRA files ------------------------------------------------------------------------------


def noise_file(trained_lora, side, version="0.12.26"):
    path = trained_lora("wan22_14b_t2v", version)
    return path.with_name(f"{path.stem}_{side}_noise.safetensors")


@pytest.mark.parametrize("version", [profile.version for profile in PROFILES])
@pytest.mark.parametrize(("side", "component"), SIDES.items())
def test_a_file_of_a_pair_binds_to_its_expert(trained_lora, load, side, component, version):
    path = noise_file(trained_lora, side, version)
    spec, modules = get_model("wan22_14b_t2v"), load("wan22_14b_t2v").modules
    layers = bind(read_adapter(path), spec, modules, side)
    assert len(layers) == len(load_file(path)) / 2 == 20
    assert {layer.path.split(".")[0] for layer in layers} == {component}
    assert len({id(layer.module) for layer in layers}) == len(layers)


def test_a_file_for_both_experts_binds_to_both(trained_lora, load, tmp_path):
    both = {
        key.replace("diffusion_model.", f"diffusion_model.transformer_{number}."): tensor
        for number, side in enumerate(SIDES, 1)
        for key, tensor in load_file(noise_file(trained_lora, side)).items()
    }
    save_file(both, tmp_path / "both.safetensors")
    adapter = read_adapter(tmp_path / "both.safetensors")
    spec, modules = get_model("wan22_14b_t2v"), load("wan22_14b_t2v").modules
    for side in SIDES:  # the names say more than the place it was given for
        layers = bind(adapter, spec, modules, side)
        assert len(layers) == len(both) / 2 == 40
        assert len({id(layer.module) for layer in layers}) == len(layers)


def test_one_file_for_both_experts_draws_as_the_pair(engine, ask, trained_lora, tmp_path):
    both = {
        key.replace("diffusion_model.", f"diffusion_model.transformer_{number}."): tensor
        for number, side in enumerate(SIDES, 1)
        for key, tensor in load_file(noise_file(trained_lora, side)).items()
    }
    path = tmp_path / "both.safetensors"
    save_file(both, path)
    high, low = (str(noise_file(trained_lora, side)) for side in SIDES)
    refs = {
        "none": (),
        "both": (AdapterRef(str(path)),),
        "pair": (AdapterRef(high, low=low),),
        "high": (AdapterRef(high),),
        "low": (AdapterRef("", low=low),),
    }
    drawn = {}
    for name, adapters in refs.items():
        request = ask("wan22_14b_t2v", num_frames=1, steps=4)
        recipe = replace(request.recipe, adapters=adapters, trainer_version=NEW.version)
        drawn[name] = engine.sample(replace(request, recipe=recipe)).frames.tobytes()
    assert drawn.pop("both") == drawn["pair"]
    assert len(set(drawn.values())) == len(drawn) == 4


def test_a_second_file_has_no_place_in_the_5b(engine, ask, trained_lora):
    request = ask("wan22_5b")
    ref = AdapterRef(str(trained_lora("wan22_5b")), low="low.safetensors")
    with pytest.raises(InvalidInputError, match="one transformer"):
        engine.plan(replace(request, recipe=replace(request.recipe, adapters=(ref,))))
