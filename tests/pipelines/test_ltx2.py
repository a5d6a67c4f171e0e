"""LTX-2 and LTX-2.3: frames and sound, guidance, what versions change, files in one piece."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ai_toolkit_inference import Engine, get_model
from ai_toolkit_inference.core.errors import (
    CheckpointError,
    InvalidInputError,
    MissingDependencyError,
)
from ai_toolkit_inference.core.ltx2_names import CONNECTORS, NETWORK, VIDEO_VAE, VOCODER
from ai_toolkit_inference.core.released_names import released
from ai_toolkit_inference.core.versions import LATEST, PROFILES, Profile
from ai_toolkit_inference.engine.files import save_sample
from ai_toolkit_inference.engine.weights import tiny_folder
from ai_toolkit_inference.pipelines import _ltx2, _ltx2_network
from ai_toolkit_inference.pipelines._ltx2_files import IN_FILE
from ai_toolkit_inference.pipelines.ltx2 import SHIFT, frame_count

IDS = ("ltx2", "ltx2.3")
OLD = PROFILES[0]


@pytest.fixture
def context(load: Any) -> Any:
    """What the profile and the prompt's length decide with, of a version."""
    return lambda profile, steps=4: SimpleNamespace(
        model=load("ltx2"), profile=profile, settings=SimpleNamespace(steps=steps, low_vram=True)
    )


# --- frames and sound ------------------------------------------------------------------------


def test_frames_are_floored_to_one_more_than_a_multiple_of_eight() -> None:
    asked = (1, 2, 8, 9, 10, 16, 17, 121, 124)
    assert [frame_count(n) for n in asked] == [1, 1, 1, 9, 9, 9, 17, 121, 121]


@pytest.mark.parametrize("model", IDS)
def test_a_clip_has_sound_as_long_as_it_is_at_24_frames(engine, ask, model) -> None:
    clip = engine.sample(ask(model, num_frames=12, fps=8))
    assert clip.frames.shape == (9, 64, 64, 3)
    assert clip.audio.dtype == np.float32
    assert clip.audio.shape[1] / clip.audio_rate == pytest.approx(9 / 24, abs=0.06)
    assert clip.fps == 8
    again = engine.sample(ask(model, num_frames=9, fps=16))
    assert again.fps == 16
    assert np.array_equal(again.frames, clip.frames)
    assert np.array_equal(again.audio, clip.audio)


def test_one_frame_is_a_still_only_if_asked_for(engine, ask) -> None:
    still, clip = (engine.sample(ask("ltx2", num_frames=n)) for n in (1, 5))
    assert still.audio is None
    assert clip.audio is not None
    assert still.frames.shape == (1, 64, 64, 3)
    assert np.array_equal(still.frames, clip.frames)


def test_a_control_image_is_the_first_frame(engine, ask) -> None:
    red, blue = (Image.new("RGB", (80, 50), colour) for colour in ("red", "blue"))

    def draw(image: Any, **fields: Any) -> np.ndarray:
        return engine.sample(ask("ltx2", control_images=(image,), **fields)).frames

    assert np.array_equal(draw(red), draw(red, seed=7, prompt="a dog"))  # alone it is only decoded
    assert not np.array_equal(draw(red), draw(blue))
    clips = [draw(red, num_frames=9, seed=seed) for seed in (1, 2)]
    assert not np.array_equal(clips[0][-1], clips[1][-1])


def test_previews_are_of_the_latents(engine, ask) -> None:
    steps = []
    engine.sample(ask("ltx2", width=96, num_frames=9), on_step=steps.append, previews=True)
    assert [(step.index, step.total) for step in steps] == [(1, 2), (2, 2)]
    assert steps[-1].preview().shape == (2, 3, 3)


@pytest.mark.parametrize("ending", ["mp4", "webm"])
def test_the_file_of_a_clip_plays_with_its_sound(engine, ask, tmp_path, ending) -> None:
    av = pytest.importorskip("av")
    clip = engine.sample(ask("ltx2", num_frames=9, fps=24))
    path = save_sample(clip, tmp_path / f"clip.{ending}")
    with av.open(str(path)) as file:
        assert sum(1 for _ in file.decode(video=0)) == 9
    with av.open(str(path)) as file:
        frames = list(file.decode(audio=0))
    seconds = sum(frame.samples / frame.sample_rate for frame in frames)
    assert seconds == pytest.approx(clip.audio.shape[1] / clip.audio_rate, abs=0.15)
    assert max(np.abs(frame.to_ndarray()).max() for frame in frames) > 0.01


def test_one_step_is_refused(engine, ask) -> None:
    with pytest.raises(InvalidInputError, match="steps=1; the trainer fails"):
        engine.plan(ask("ltx2", steps=1))
    assert engine.plan(ask("ltx2", steps=2)).settings.steps == 2


# --- guidance --------------------------------------------------------------------------------


def test_the_sound_of_the_newer_one_is_guided_by_seven() -> None:
    video, sound = _ltx2_network.guidances(True, 3.5)
    assert (video.text, sound.text) == (3.5, 7.0)
    assert replace(video, text=7.0) == sound == _ltx2_network.Guidance(7.0, 1.0, 3.0, 0.7)
    assert _ltx2_network.guidances(False, 3.5) == (_ltx2_network.Guidance(3.5),) * 2


def test_guidance_leads_away_from_each_prediction_that_was_made() -> None:
    towards, away, skipped, alone = (torch.tensor([[float(x), 1.0]]) for x in (4, 3, 2, 1))
    guidance = _ltx2_network.Guidance(2.0, 10.0, 101.0)
    assert guidance.apply(towards, away, skipped, alone)[0, 0] == 4 + 1 + 20 + 300
    assert guidance.apply(towards, None, None, None).equal(towards)
    assert guidance.apply(towards, away, None, None)[0, 0] == 5
    rescaled = replace(guidance, rescale=1.0).apply(towards, away, skipped, alone)
    assert rescaled.std() == pytest.approx(float(towards.std()))


def test_without_guidance_the_negative_prompt_counts_for_the_newer_one_only(engine, ask) -> None:
    for model, counts in (("ltx2", False), ("ltx2.3", True)):
        clips = [
            engine.sample(ask(model, guidance_scale=1.0, negative_prompt=text))
            for text in ("", "blurry film")
        ]
        same = np.array_equal(clips[0].audio, clips[1].audio)
        assert same != counts, model


# --- versions --------------------------------------------------------------------------------


def test_the_prompt_is_padded_left_whatever_the_version(context) -> None:
    for profile in PROFILES:
        states, mask = _ltx2.encode(context(profile), " a photo of cat ")
        assert states.shape[1] == mask.shape[1] == 1024
        length = int(mask.sum())
        assert 4 < length < 40
        assert mask[0, -length:].all()
        assert not states[0, :-length].any()


def test_the_older_version_norms_before_the_connectors(context) -> None:
    old, new = (_ltx2.encode(context(profile), "a cat")[0] for profile in PROFILES)
    width = old.shape[2]
    assert old.shape == new.shape == (1, 1024, width)
    assert not torch.allclose(old, new, atol=0.1)
    assert old.abs().max() <= 8  # of a range that is scaled to 8


@pytest.mark.parametrize("tokens", [8, 1024, 4096, 9216])
def test_noise_levels_follow_the_size_in_the_older_version_only(context, tokens) -> None:
    from ai_toolkit_inference.pipelines._schedulers import flow_match_scheduler

    def levels(profile: Profile) -> torch.Tensor:
        scheduler = flow_match_scheduler(SHIFT)
        _ltx2.set_levels(context(profile), scheduler, tokens)
        return scheduler.sigmas

    mu = 0.95 + (2.05 - 0.95) * (tokens - 1024) / (4096 - 1024)
    for profile, shift in ((OLD, mu), (LATEST, 2.05)):
        even = torch.tensor([1.0, 0.75, 0.5, 0.25])
        shifted = np.exp(shift) / (np.exp(shift) + (1 / even - 1))
        stretched = 1 - (1 - shifted) * 0.9 / (1 - shifted[-1])
        assert torch.allclose(levels(profile)[:-1], stretched.float(), atol=1e-5)


def test_the_connectors_are_given_the_tokens_in_order_or_last_to_first(load) -> None:
    connectors = load("ltx2").modules["connectors"]
    states = torch.randn(1, 1024, 32 * 7, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 1024)
    turned, plain = (
        connectors(x, mask, normed=False, reverse=reverse)[0]
        for x, reverse in ((states.flip(1), True), (states, False))
    )
    assert torch.allclose(turned, plain, atol=1e-4)
    mask[:, :-5] = 0
    turned, plain = (
        connectors(states, mask, normed=False, reverse=reverse)[0] for reverse in (True, False)
    )
    assert not torch.allclose(turned, plain, atol=0.01)


def test_frames_are_decoded_in_the_parts_of_the_version(context) -> None:
    vae = context(LATEST).model.modules["vae"]
    for profile, expected in ((OLD, (True, False, 256)), (LATEST, (False, True, 256))):
        with _ltx2.tiled_as_trainer(context(profile)):
            state = vae.use_tiling, vae.use_framewise_decoding, vae.tile_sample_min_width
        assert state[:2] == expected[:2]
        assert not (vae.use_tiling or vae.use_framewise_decoding)
        assert profile == LATEST or state == expected
    assert (vae.tile_sample_min_num_frames, vae.tile_sample_stride_num_frames) == (16, 8)


def test_without_low_vram_all_is_decoded_at_once(engine, ask) -> None:
    def draw(low_vram: str, version: str = LATEST.version, **fields: Any) -> np.ndarray:
        request = ask("ltx2", steps=2, **fields)
        recipe = replace(request.recipe, low_vram=low_vram, trainer_version=version)
        return engine.sample(replace(request, recipe=recipe)).frames

    assert np.array_equal(draw("on", num_frames=17), draw("auto", num_frames=17))
    assert not np.array_equal(draw("off", num_frames=17), draw("auto", num_frames=17))
    assert np.array_equal(draw("off"), draw("auto"))
    wide = {"width": 288, "version": OLD.version}
    assert not np.array_equal(draw("off", **wide), draw("auto", **wide))
    wide["version"] = LATEST.version
    assert np.array_equal(draw("off", **wide), draw("auto", **wide))


def test_the_older_version_does_not_have_the_newer_model(engine, ask) -> None:
    request = ask("ltx2.3")
    request = replace(request, recipe=replace(request.recipe, trainer_version=OLD.version))
    with pytest.raises(InvalidInputError, match=r"does not have LTX-2\.3 yet"):
        engine.plan(request)


def test_transformers_too_old_for_diffusers(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", SimpleNamespace(__version__="0.42.1"))
    with pytest.raises(MissingDependencyError, match=r"diffusers 0\.42\.1 needs another"):
        _ltx2.pipeline_class()


# --- files in one piece ----------------------------------------------------------------------

NAMES = (  # of diffusers, of the release
    (NETWORK, "proj_in.weight", "patchify_proj.weight"),
    (NETWORK, "audio_proj_in.bias", "audio_patchify_proj.bias"),
    (NETWORK, "audio_time_embed.linear.weight", "audio_adaln_single.linear.weight"),
    (NETWORK, "audio_prompt_adaln.linear.bias", "audio_prompt_adaln_single.linear.bias"),
    (NETWORK, "av_cross_attn_audio_scale_shift.linear.bias",
     "av_ca_audio_scale_shift_adaln_single.linear.bias"),
    (NETWORK, "av_cross_attn_video_a2v_gate.linear.bias",
     "av_ca_a2v_gate_adaln_single.linear.bias"),
    (NETWORK, "transformer_blocks.3.video_a2v_cross_attn_scale_shift_table",
     "transformer_blocks.3.scale_shift_table_a2v_ca_video"),
    (NETWORK, "transformer_blocks.3.ff.norm_k.weight", "transformer_blocks.3.ff.k_norm.weight"),
    (CONNECTORS, "text_proj_in.weight", "text_embedding_projection.aggregate_embed.weight"),
    (CONNECTORS, "audio_text_proj_in.bias", "text_embedding_projection.audio_aggregate_embed.bias"),
    (CONNECTORS, "video_connector.transformer_blocks.1.attn1.norm_q.weight",
     "video_embeddings_connector.transformer_1d_blocks.1.attn1.q_norm.weight"),
    (VIDEO_VAE, "encoder.down_blocks.3.downsamplers.0.conv.conv.bias",
     "encoder.down_blocks.7.conv.conv.bias"),
    (VIDEO_VAE, "encoder.mid_block.resnets.1.conv1.conv.bias",
     "encoder.down_blocks.8.res_blocks.1.conv1.conv.bias"),
    (VIDEO_VAE, "decoder.mid_block.resnets.0.conv1.conv.bias",
     "decoder.up_blocks.0.res_blocks.0.conv1.conv.bias"),
    (VIDEO_VAE, "decoder.up_blocks.1.upsamplers.0.conv.conv.bias",
     "decoder.up_blocks.3.conv.conv.bias"),
    (VIDEO_VAE, "decoder.up_blocks.0.resnets.4.conv2.conv.bias",
     "decoder.up_blocks.2.res_blocks.4.conv2.conv.bias"),
    (VIDEO_VAE, "latents_std", "per_channel_statistics.std-of-means"),
    (VOCODER, "bwe_generator.upsamplers.0.weight", "bwe_generator.ups.0.weight"),
    (VOCODER, "vocoder.resnets.0.acts1.0.downsample.filter",
     "vocoder.resblocks.0.acts1.0.downsample.lowpass.filter"),
    (VOCODER, "vocoder.act_out.act.alpha", "vocoder.act_post.act.alpha"),
)  # fmt: skip


@pytest.mark.parametrize(("rules", "name", "theirs"), NAMES, ids=[case[1] for case in NAMES])
def test_the_names_of_the_first_release(rules, name, theirs) -> None:
    assert released(name, rules) == theirs


def one_file(folder: Path, file: Path) -> dict[str, torch.Tensor]:
    """Writes all but the text encoder into one file; `folder` loses these weights."""
    tensors = {}
    for part, (prefix, rules) in IN_FILE.items():
        path = folder / part / "diffusion_pytorch_model.safetensors"
        for name, tensor in load_file(path).items():
            inner = released(name, rules)
            own = "" if inner.startswith("text_embedding_projection") else prefix
            tensors[own + inner] = tensor
        path.unlink()
    tensors["vae.per_channel_statistics.mean-of-stds"] = torch.ones(128)
    save_file(tensors, file)
    return tensors


@pytest.fixture(params=IDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """(id, file, its tensors, folder of the rest)"""
    folder = tmp_path / "released"
    shutil.copytree(tiny_folder(get_model(request.param)), folder)
    file = tmp_path / "released.safetensors"
    return request.param, file, one_file(folder, file), folder


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_one_file_draws_as_the_folder(ask, checkpoint, dtype) -> None:
    model, file, _, _ = checkpoint
    engines = Engine("cpu"), Engine("cpu")
    requests = [ask(model, weights=weights, dtype=dtype) for weights in (file, "tiny")]
    vocoders = [
        engine.model(request.recipe).modules["vocoder"]
        for engine, request in zip(engines, requests, strict=True)
    ]
    if model == "ltx2.3":
        _share_filter(*vocoders, exact=dtype == "fp32")
    ours, theirs = (
        engine.sample(request) for engine, request in zip(engines, requests, strict=True)
    )
    assert np.array_equal(ours.frames, theirs.frames)
    assert np.array_equal(ours.audio, theirs.audio)


def _share_filter(ours: Any, theirs: Any, exact: bool) -> None:
    # the one that no file holds: of a folder it is computed in the model's dtype, as in the trainer
    mine, other = (vocoder.resampler.filter for vocoder in (ours, theirs))
    assert torch.equal(mine.to(other.dtype), other) == exact
    assert torch.allclose(mine.float(), other.float(), atol=0.01)
    theirs.resampler.filter = mine.clone()


@pytest.mark.parametrize(
    "lost", ["model.diffusion_model.patchify_proj.bias", "vae.decoder.conv_in.conv.bias"]
)
def test_a_file_that_lacks_a_tensor(ask, checkpoint, lost) -> None:
    model, file, tensors, _ = checkpoint
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, file)
    with pytest.raises(CheckpointError, match=f"1 tensors are missing.*{lost.split('.', 2)[2]}"):
        Engine("cpu").model(ask(model, weights=file).recipe)


def test_a_file_without_the_sound(ask, checkpoint) -> None:
    model, file, tensors, _ = checkpoint
    save_file({name: x for name, x in tensors.items() if not name.startswith("vocoder.")}, file)
    with pytest.raises(CheckpointError, match="this one lacks vocoder"):
        Engine("cpu").model(ask(model, weights=file).recipe)


def test_the_newer_ones_text_encoder_is_another_repositorys(monkeypatch, tmp_path) -> None:
    from ai_toolkit_inference.engine import weights
    from ai_toolkit_inference.pipelines._loading import part_path

    asked = []
    monkeypatch.setattr(
        weights, "fetch_repository", lambda *given: asked.append(given[:2]) or tmp_path
    )
    spec, file = get_model("ltx2.3"), "ltx-2.3-22b-dev.safetensors"
    assert weights.find_weights(spec, "huggingface", print) == (tmp_path / file, None)
    assert asked == [("Lightricks/LTX-2.3", [file])]
    weights.fetch_elsewhere(spec, tmp_path / file, print)
    assert asked[1][0].startswith("Lightricks/gemma-3")
    for part in ("text_encoder", "tokenizer"):
        assert part_path(spec, tmp_path / "a.safetensors", part).startswith("Lightricks/gemma-3")


def test_a_released_index_is_accepted(ask, tmp_path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_folder(get_model("ltx2")), folder)
    index = json.loads((folder / "model_index.json").read_text())
    assert index["connectors"][0] == index["vocoder"][0] == "ltx2"
    Engine("cpu").model(ask("ltx2", weights=folder).recipe)
    index["vocoder"][0] = "my_code"
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="code of its own"):
        Engine("cpu").model(ask("ltx2", weights=folder).recipe)
