"""What LTX-2 computes around its network: the prompt's states, noise levels, VAEs.

diffusers is called for the parts alone. Its pipelines differ between the trainer's versions and
the releases in guidance, noise levels and where tokens go; the profile decides here.
Upstream: huggingface/diffusers@8600b4c1 and @c9438378 src/diffusers/pipelines/ltx2
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..core.errors import MissingDependencyError

PROMPT_TOKENS = 1024
FRAME_RATE = 24.0  # that the network is told, whatever the clip is to have
NORM_SCALE = 8  # of the states of LTX-2's prompt
# What the trainer makes of a job with `low_vram`, in px and frames.
TILES = {
    "tile_sample_min_height": 256,
    "tile_sample_min_width": 256,
    "tile_sample_stride_height": 224,
    "tile_sample_stride_width": 224,
}
CHUNKS = {"tile_sample_min_num_frames": 16, "tile_sample_stride_num_frames": 8}


def pipeline_class() -> Any:
    """diffusers' LTX2Pipeline. Raises MissingDependencyError where it cannot be imported."""
    import diffusers
    import transformers

    try:
        return diffusers.LTX2Pipeline
    except (ImportError, RuntimeError, AttributeError) as error:
        raise MissingDependencyError(
            f"LTX-2 with diffusers {diffusers.__version__} needs another transformers than "
            f"{transformers.__version__}: 5.10 or newer, or diffusers 0.39 ({error})"
        ) from error


# --- the prompt ------------------------------------------------------------------------------


def encode(context: Any, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All hidden states of a prompt, side by side, padded left: (1, 1024, C * layers).

    Also the mask of what is no padding, (1, 1024), in the model's dtype as the trainer has it, so
    that in bf16 a length above 256 is rounded where it is counted.
    """
    model, profile = context.model, context.profile
    tokenizer = model.tokenizers["tokenizer"]
    tokenizer.padding_side = "left"
    tokens = tokenizer(
        [prompt.strip()],
        padding="longest" if profile.has("ltx2_prompt_unpadded") else "max_length",
        max_length=PROMPT_TOKENS,
        truncation=True,
        return_tensors="pt",
    ).to(model.device)
    mask = tokens.attention_mask
    states = model.modules["text_encoder"](
        input_ids=tokens.input_ids,
        attention_mask=mask,
        output_hidden_states=True,
        logits_to_keep=1,  # of no use, and the vocabulary is large
    ).hidden_states
    states = torch.stack(states, dim=-1)
    # later versions leave that to the connectors
    states = states.flatten(2) if profile.has("ltx2_clean_guidance") else _normed(states, mask)
    missing = PROMPT_TOKENS - mask.shape[1]
    states = F.pad(states.to(model.dtype), (0, 0, missing, 0))
    return states, F.pad(mask, (missing, 0)).to(model.dtype)


def _normed(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    # (B, L, C, layers) by the mean and the range of each layer: (B, L, C * layers)
    from diffusers.pipelines.ltx2.connectors import per_layer_masked_mean_norm

    return per_layer_masked_mean_norm(
        states, mask.sum(dim=-1), device=states.device, scale_factor=NORM_SCALE
    )


def connect_as_trainer(connectors: Any) -> Any:
    """The connectors of diffusers, from now on called as `_connect` is."""
    for side in ("video_connector", "audio_connector"):
        connector = getattr(connectors, side)
        connector.forward = partial(_side, connector, connector.forward)
    connectors.forward = partial(_connect, connectors)
    return connectors


def _connect(
    connectors: Any, states: torch.Tensor, mask: torch.Tensor, normed: bool, reverse: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # what the network reads of the states: for the picture, for the sound, and a mask of ones
    config = connectors.config
    if config.per_modality_projections:
        video, audio = _projected_apart(connectors, states, mask)
    else:
        if not normed:
            states = _normed(states.unflatten(2, (config.caption_channels, -1)), mask)
        video = audio = connectors.text_proj_in(states)
    ignored = (mask.to(torch.int64) - 1).to(video.dtype)[:, None, None]
    ignored = ignored * torch.finfo(video.dtype).max
    video, seen = connectors.video_connector(video, ignored, reverse)
    audio, _ = connectors.audio_connector(audio, ignored, reverse)
    read = (seen < 1e-6).to(torch.int64).reshape(video.shape[0], video.shape[1])
    return video * read[..., None], audio, read


def _projected_apart(
    connectors: Any, states: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    # LTX-2.3: normed by token, then scaled and projected for each modality
    from diffusers.pipelines.ltx2.connectors import per_token_rms_norm

    config = connectors.config
    states = states.unflatten(2, (config.caption_channels, -1))
    states = per_token_rms_norm(states).flatten(2)
    states = torch.where(mask.bool()[..., None], states, torch.zeros_like(states))
    video, audio = (
        states * (width / config.caption_channels) ** 0.5
        for width in (config.video_hidden_dim, config.audio_hidden_dim)
    )
    return connectors.video_text_proj_in(video), connectors.audio_text_proj_in(audio)


def _side(
    connector: Any, forward: Any, states: torch.Tensor, ignored: torch.Tensor, reverse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    # diffusers puts the tokens first, then its learned registers; some versions turned all about
    if connector.learnable_registers is not None and reverse:
        registers = connector.learnable_registers
        registers = registers.repeat(states.shape[1] // len(registers), 1)
        real = (ignored[:, 0, 0] > -1)[..., None]
        states = torch.where(real, states, registers.to(states.dtype)).flip(1)
        ignored = torch.zeros_like(ignored)
    return forward(states, ignored)


# --- noise levels ----------------------------------------------------------------------------


def set_levels(context: Any, scheduler: Any, tokens: int) -> torch.Tensor:
    """Sets a scheduler for this sample, and returns its timesteps. tokens: of the picture."""
    config = scheduler.config
    if context.profile.has("ltx2_clean_guidance"):
        tokens = config.max_image_seq_len
    slope = (config.max_shift - config.base_shift) / (
        config.max_image_seq_len - config.base_image_seq_len
    )
    mu = tokens * slope + (config.base_shift - slope * config.base_image_seq_len)
    steps = context.settings.steps
    sigmas = np.linspace(1.0, 1 / steps, steps)
    scheduler.set_timesteps(sigmas=sigmas, device=context.model.device, mu=mu)
    return scheduler.timesteps


# --- VAEs ------------------------------------------------------------------------------------


@contextmanager
def tiled_as_trainer(context: Any) -> Iterator[None]:
    """The video VAE works in parts where the job has `low_vram`: by tiles, or later by frames."""
    vae = context.model.modules["vae"]
    by_frames = context.profile.has("ltx2_decoded_by_frames")
    for name, value in (CHUNKS if by_frames else TILES).items():
        setattr(vae, name, value)
    if context.settings.low_vram:
        vae.use_tiling, vae.use_framewise_decoding = not by_frames, by_frames
    try:
        yield
    finally:
        vae.use_tiling = vae.use_framewise_decoding = False


def encode_first_frame(context: Any, image: Any) -> torch.Tensor:
    """The control image as fp32 latents of one frame: (1, C, 1, h, w)."""
    from PIL import Image

    settings, model = context.settings, context.model
    vae = model.modules["vae"]
    size = settings.width, settings.height
    pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), np.float32)
    frame = torch.from_numpy(pixels / 255.0).permute(2, 0, 1)[None, :, None]
    frame = (2.0 * frame - 1.0).to(model.device, model.dtype)
    latents = vae.encode(frame).latent_dist.mode().float()
    mean, std = (_per_channel(values, latents) for values in (vae.latents_mean, vae.latents_std))
    return (latents - mean) * 1.0 / std


def decode_frames(context: Any, latents: torch.Tensor) -> np.ndarray:
    """uint8 (F, H, W, 3) of fp32 latents (1, C, f, h, w)."""
    model = context.model
    vae = model.modules["vae"]
    if context.profile.has("ltx2_clean_guidance"):
        latents = latents.to(model.dtype)
    mean, std = (_per_channel(values, latents) for values in (vae.latents_mean, vae.latents_std))
    latents = (latents * std / vae.config.scaling_factor + mean).to(model.dtype)
    # one that is told of noise in the latents is told there is none
    time = torch.zeros(1, device=model.device, dtype=model.dtype)
    time = time if vae.config.timestep_conditioning else None
    video = vae.decode(latents, time, return_dict=False)[0][0]
    pixels = (video * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 3, 0).cpu().float().numpy()
    return (pixels * 255).round().astype("uint8")


def _per_channel(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, 1, 1, 1).to(like.device, like.dtype)


def decode_sound(context: Any, latents: torch.Tensor) -> np.ndarray:
    """float32 (channels, samples) of packed fp32 latents (1, L, C * bins)."""
    modules = context.model.modules
    vae = modules["audio_vae"]
    mean, std = (
        values.to(latents.device, latents.dtype) for values in (vae.latents_mean, vae.latents_std)
    )
    channels = vae.config.latent_channels
    latents = (latents * std + mean).unflatten(2, (channels, -1)).transpose(1, 2)
    spectrogram = vae.decode(latents.to(context.model.dtype), return_dict=False)[0]
    return modules["vocoder"](spectrogram)[0].float().cpu().numpy()
