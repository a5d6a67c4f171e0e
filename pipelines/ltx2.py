"""LTX-2 and LTX-2.3: clips with sound, from text, or from text and a first frame.

Upstream: ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/ltx2/ltx2.py
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..core.errors import InvalidInputError
from ..core.specs import ControlImages, Defaults, LoraLayout, ModelSpec, Quantizing

GEMMA = "Lightricks/gemma-3-12b-it-qat-q4_0-unquantized"  # LTX-2.3's text encoder
GRID = 32  # px to a latent
FRAMES = 8  # to a latent, after the first
SHIFT = {
    "base_image_seq_len": 1024,
    "base_shift": 0.95,
    "max_image_seq_len": 4096,
    "max_shift": 2.05,
    "shift_terminal": 0.1,
    "use_dynamic_shifting": True,
}


def load_ltx2(
    spec: ModelSpec, source: Path, dtype: Any, folder: Path | None = None
) -> dict[str, Any]:
    """The parts of a checkpoint, see _ltx2_files.read_ltx2."""
    from ._ltx2_files import read_ltx2

    return read_ltx2(spec, source, dtype, folder)


def check_ltx2(settings: Any) -> None:
    """Raises InvalidInputError for one step: its noise level cannot be stretched, and is NaN."""
    if settings.steps < 2:
        raise InvalidInputError(
            "steps=1; the trainer fails on it, or draws black frames without sound, since it "
            "stretches the noise levels between the first step and the last: use 2 or more"
        )


def frame_count(asked: int) -> int:
    """How many frames are drawn: as many as asked, or fewer, one more than a multiple of 8."""
    return (asked - 1) // FRAMES * FRAMES + 1


def render_ltx2(context: Any, newer: bool = False) -> Any:
    """A Clip of uint8 frames (F, H, W, 3) with sound; if one frame is asked for, that alone.

    Latents of both are fp32 in every precision. newer: with the guidance of LTX-2.3.
    """
    from ._ltx2 import decode_frames, decode_sound, pipeline_class, tiled_as_trainer
    from ._render import Clip
    from ._schedulers import flow_match_scheduler

    model, settings = context.model, context.settings
    # never called: it tells offloading what works when, and arranges latents
    pipeline = pipeline_class()(**model.parts(), scheduler=flow_match_scheduler(SHIFT))
    with context.place(pipeline), tiled_as_trainer(context):
        video, sound = _denoise(context, pipeline, newer)
        frames = decode_frames(context, video)
        if settings.num_frames == 1:
            return frames
        rate = model.modules["vocoder"].config.output_sampling_rate
        return Clip(frames, settings.fps, decode_sound(context, sound), rate)


def _denoise(context: Any, pipeline: Any, newer: bool) -> tuple[Any, Any]:
    # latents of the picture, (1, C, f, h, w), and of the sound, packed: (1, L, C * bins)
    import copy

    import torch

    from ._ltx2 import set_levels
    from ._ltx2_network import Network
    from ._render import step_callback

    count = frame_count(context.settings.num_frames)
    video, kept = _start(context, count)
    size = video.shape[2:]
    sound = _start_sound(context, pipeline, count)
    network = Network(context, newer, size, sound.shape[1], kept)

    def unpack(packed: Any) -> Any:
        return pipeline._unpack_latents(packed, *size)

    tokens = pipeline._pack_latents(video)
    schedulers = pipeline.scheduler, copy.deepcopy(pipeline.scheduler)
    timesteps, _ = (set_levels(context, scheduler, tokens.shape[1]) for scheduler in schedulers)
    pipeline._num_timesteps = len(timesteps)
    report = step_callback(context, unpack)
    for index, timestep in enumerate(timesteps):
        level = schedulers[0].sigmas[index]
        forward, sounding = network.predict((tokens, sound), timestep, level)
        if context.control_images:  # all but the first frame moves
            video, forward = unpack(tokens), unpack(forward)[:, :, 1:]
            moved = schedulers[0].step(forward, timestep, video[:, :, 1:], return_dict=False)[0]
            tokens = pipeline._pack_latents(torch.cat([video[:, :, :1], moved], dim=2))
        else:
            tokens = schedulers[0].step(forward, timestep, tokens, return_dict=False)[0]
        sound = schedulers[1].step(sounding, timestep, sound, return_dict=False)[0]
        report(pipeline, index, timestep, {"latents": tokens})
    return unpack(tokens), sound


def _start(context: Any, count: int) -> tuple[Any, Any]:
    # latents (1, C, f, h, w), and 1 for tokens that are given and stay, (1, f * h * w), or None
    import torch

    from ._ltx2 import encode_first_frame

    settings, model = context.settings, context.model
    channels = model.modules["transformer"].config.in_channels
    sides = (count - 1) // FRAMES + 1, settings.height // GRID, settings.width // GRID
    shape = (1, channels, *sides)
    given = [encode_first_frame(context, image) for image in context.control_images]
    noise = torch.randn(shape, generator=context.generator, dtype=torch.float32).to(model.device)
    if not given:
        return noise, None
    kept = torch.zeros(1, 1, *sides, device=model.device)
    kept[:, :, 0] = 1.0
    return given[0] * kept + noise * (1 - kept), kept.flatten(1)


def _start_sound(context: Any, pipeline: Any, count: int) -> Any:
    # as long as the clip would be at FRAME_RATE: (1, L, C * bins)
    import torch

    from ._ltx2 import FRAME_RATE

    model = context.model
    config = model.modules["audio_vae"].config
    per_second = pipeline.audio_sampling_rate / pipeline.audio_hop_length
    per_second /= float(pipeline.audio_vae_temporal_compression_ratio)
    bins = config.mel_bins // pipeline.audio_vae_mel_compression_ratio
    shape = (1, config.latent_channels, round(count / FRAME_RATE * per_second), bins)
    noise = torch.randn(shape, generator=context.generator, dtype=torch.float32)
    return pipeline._pack_audio_latents(noise.to(model.device))


def build_tiny_ltx2(seed: int, newer: bool = False) -> dict[str, Any]:
    """The parts of a toy LTX-2, or of LTX-2.3 if newer, real classes."""
    from ._tiny_ltx2 import tiny_parts

    return tiny_parts(seed, newer)


LTX2 = ModelSpec(
    id="ltx2",
    title="LTX-2",
    task="video",
    arch="ltx2",
    repo_id="Lightricks/LTX-2",
    pipeline="LTX2Pipeline",
    other_pipelines=("LTX2ImageToVideoPipeline",),
    latent_channels=128,
    multiple_of=GRID,
    defaults=Defaults(
        width=768,
        height=768,
        steps=25,
        guidance_scale=4.0,
        sampler="flowmatch",
        num_frames=121,
        fps=24,
    ),
    samplers=("flowmatch",),
    lora=LoraLayout(
        prefixes=(("diffusion_model", "transformer"),),
        separator=".",
        alpha=False,
        targets=("transformer_blocks",),
        base_model="ltx2",
        original="ltx2",
        writes_original=True,
    ),
    source="ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/ltx2/ltx2.py",
    components=("text_encoder", "connectors", "transformer", "vae", "audio_vae", "vocoder"),
    quantizing=Quantizing(
        encoders=("text_encoder",),
        recovers=True,
        offloads=("transformer", "text_encoder"),
    ),
    control_images=ControlImages(0, 1),
    part_file="transformer",
    in_part_file=("connectors", "vae", "audio_vae", "vocoder"),
    notes=(
        "The network is told 24 frames per second whatever fps is, and the sound is as long as the "
        "clip would be at 24; fps changes only how fast the file plays its frames.",
        "Noise levels are shifted as for 4096 tokens whatever the size, and guidance is between "
        "clean predictions; before trainer 0.7.25 the shift went on with the number of tokens, "
        "beyond 4096 too, and guidance was between velocities.",
        "Since trainer 0.10.24 the connectors are given a prompt's tokens last to first, a fault "
        "of the diffusers it is pinned to, which diffusers 0.39 and newer do not have.",
        "Prompts are encoded without padding and then padded with zeros to 1024 tokens; in bf16 "
        "the trainer rounds the length of prompts of more than 256.",
        "With `low_vram`, which is on in jobs of the trainer's form, frames are decoded 16 at a "
        "time and blended, and before trainer 0.7.30 in tiles of 256 px; without it, all at once.",
        "The first frame is resized to the clip's size by Lanczos, without cropping, and given as "
        "it is; diffusers 0.42 compresses it first. Only `ctrl_img` is looked at.",
    ),
    load=load_ltx2,
    low_vram=True,
    check=check_ltx2,
    render=render_ltx2,
    build_tiny=build_tiny_ltx2,
)
LTX23 = replace(
    LTX2,
    id="ltx2.3",
    title="LTX-2.3",
    arch="ltx2.3",
    repo_id="Lightricks/LTX-2.3",
    released_file="ltx-2.3-22b-dev.safetensors",
    elsewhere=(("text_encoder", GEMMA), ("tokenizer", GEMMA)),
    since="ltx2.3",
    notes=(
        *LTX2.notes,
        "Guided away from two further predictions: with the attention of "
        "block 28 left out, and without the other modality; then rescaled by 0.7. The sound's "
        "guidance is 7 whatever guidance_scale is, so that it is always guided.",
        "In bf16 the sound of the one file and of a folder differ slightly, in the trainer too: "
        "a filter that neither holds is computed in fp32 for the one, in bf16 for the other.",
    ),
    render=partial(render_ltx2, newer=True),
    build_tiny=partial(build_tiny_ltx2, newer=True),
)
MODELS = (LTX2, LTX23)
