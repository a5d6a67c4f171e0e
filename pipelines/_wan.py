"""What Wan 2.1 and 2.2 share: prompts, schedules, the loop over the steps, latents to frames.

Upstream: ostris/ai-toolkit@27a03a91 toolkit/models/wan21/wan21.py, and the pipelines of
huggingface/diffusers@c9438378 src/diffusers/pipelines/wan/ that it drives
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.errors import InvalidInputError, MissingDependencyError
from ..core.missing import pip_command
from ..core.specs import ModelSpec
from ..core.versions import Profile
from ._loading import part_path
from ._qwen_vae import in_tiles, norms_of
from ._render import RenderContext, step_callback
from ._schedulers import flow_match_scheduler
from ._unipc import FlowUniPC, unipc_timesteps
from ._wan_spec import TILING

TOKENS = 512
TRAIN_STEPS = 1000
FRAMES_PER_LATENT = 4  # but for the first, which is one frame

Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Keep = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


# --- prompts ---------------------------------------------------------------------------------


def load_umt5(spec: ModelSpec, source: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The text encoder and its tokenizer, of the folder or else of the trainer's repository."""
    import transformers

    def home(name: str) -> str:
        path = part_path(spec, source, name)
        return str(source) if path == str(source / name) else path

    classes: Any = transformers
    return {
        "tokenizer": classes.PreTrainedTokenizerFast.from_pretrained(
            home("tokenizer"), subfolder="tokenizer"
        ),
        "text_encoder": classes.UMT5EncoderModel.from_pretrained(
            home("text_encoder"),
            subfolder="text_encoder",
            torch_dtype=dtype,
            use_safetensors=True,
        ),
    }


def umt5_embeds(context: RenderContext, prompt: str) -> torch.Tensor:
    """The prompt as the transformer takes it: (1, 512, C), zeros behind its last token."""
    model = context.model
    ids = umt5_ids(model.tokenizers["tokenizer"], prompt, context.profile)
    padded = torch.tensor([ids + [0] * (TOKENS - len(ids))], device=model.device)
    mask = (torch.arange(TOKENS, device=model.device) < len(ids)).long()[None]
    hidden = model.modules["text_encoder"](padded, mask).last_hidden_state
    return hidden.to(model.device, model.dtype).masked_fill(mask[:, :, None] == 0, 0)


def guided_texts(context: RenderContext) -> list[torch.Tensor]:
    """Embeddings of the prompt and, where guidance is above 1, of the negative prompt."""
    settings = context.settings
    prompts = [settings.prompt]
    if settings.guidance_scale > 1:
        prompts.append(settings.negative_prompt)
    return [umt5_embeds(context, prompt) for prompt in prompts]


def umt5_ids(tokenizer: Any, prompt: str, profile: Profile) -> list[int]:
    """Token ids of a prompt after cleaning, with the end token: at most 512."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    with _read_as_by(backend, profile):
        ids = backend.encode(clean_prompt(prompt)).ids
    return ids if len(ids) <= TOKENS else [*ids[: TOKENS - 1], ids[-1]]


def clean_prompt(prompt: str) -> str:
    """The prompt repaired by ftfy, its HTML entities read, its spaces single."""
    try:
        import ftfy
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"the trainer repairs the prompts of Wan with ftfy ({error}); run "
            f"`{pip_command('ftfy')}`"
        ) from error
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split())


@contextmanager
def _read_as_by(backend: Any, profile: Profile) -> Iterator[None]:
    # newer trainers build the tokenizer from the vocabulary alone: nothing is normalized
    if not profile.has("umt5_prompt_not_normalized"):
        yield
        return
    from tokenizers import pre_tokenizers

    kept = backend.normalizer, backend.pre_tokenizer
    spaces = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always", split=True)
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
    try:
        yield
    finally:
        backend.normalizer, backend.pre_tokenizer = kept


# --- schedules -------------------------------------------------------------------------------


class WanUniPC(FlowUniPC):
    """UniPC over the noise levels that the trainer's diffusers gave Wan."""

    def noise_levels(self, steps: int) -> np.ndarray:
        return unipc_levels(steps, self.shift)


def unipc_levels(steps: int, shift: float) -> np.ndarray:
    """The noise levels of the steps, float64 (steps,), falling from just below 1.

    Upstream: huggingface/diffusers@8600b4c1
    src/diffusers/schedulers/scheduling_unipc_multistep.py::UniPCMultistepScheduler
    """
    sigmas = 1.0 - np.linspace(1, 1 / TRAIN_STEPS, steps + 1)
    return np.flip(shift * sigmas / (1 + (shift - 1) * sigmas))[:-1].copy()


def wan_scheduler(profile: Profile, steps: int, unipc_shift: float, euler_shift: float) -> Any:
    """The scheduler of a trainer version: UniPC, or Euler, which shifts its noise levels twice.

    Raises InvalidInputError for so many steps that UniPC fails: it looks up where it starts by
    the timestep, a whole number, which the first two steps must not share.
    """
    if profile.has("wan_euler_sampler"):
        return flow_match_scheduler({"num_train_timesteps": TRAIN_STEPS, "shift": euler_shift})
    timesteps = unipc_timesteps(unipc_levels(steps, unipc_shift))
    if steps > 1 and timesteps[0] == timesteps[1]:
        raise InvalidInputError(
            f"steps={steps}; with so many the first two have the same timestep, at which trainer "
            f"version {profile.version} fails; use 200 or less"
        )
    return WanUniPC(unipc_shift)


# --- sampling --------------------------------------------------------------------------------


def whole_frames(num_frames: int) -> int:
    """How many frames are drawn for a number asked for: 4 n + 1."""
    if num_frames % FRAMES_PER_LATENT != 1:
        num_frames = num_frames // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
    return max(num_frames, 1)


def floored_frames(context: RenderContext) -> RenderContext:
    """The same with a number of frames of 4 n + 1 that is not more than was asked for."""
    frames = (context.settings.num_frames - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
    return replace(context, settings=replace(context.settings, num_frames=frames))


def latent_shape(context: RenderContext, channels: int) -> tuple[int, int, int, int, int]:
    """(1, C, f, h, w) of the settings' clip in latents."""
    settings = context.settings
    scale = context.model.modules["vae"].config.scale_factor_spatial
    frames = (whole_frames(settings.num_frames) - 1) // FRAMES_PER_LATENT + 1
    return (1, channels, frames, settings.height // scale, settings.width // scale)


def noise(
    context: RenderContext, channels: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """What the clip starts from: (1, C, f, h, w), drawn on the CPU, on the device."""
    shape = latent_shape(context, channels)
    drawn = torch.randn(shape, generator=context.generator, dtype=dtype)
    return drawn.to(context.model.device)


def _moved(_before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    return after


def denoised(
    context: RenderContext,
    pipeline: Any,
    latents: torch.Tensor,
    texts: list[torch.Tensor],
    predict: Predict,
    keep: Keep = _moved,
) -> torch.Tensor:
    """The latents after all steps of the pipeline's scheduler; everything is placed.

    texts: as guided_texts gives them. predict: (latents in the model's precision, timestep (),
    text) -> what the network predicts. keep: (latents as the network saw them, latents after the
    step) -> latents of the next step.
    """
    settings, scheduler = context.settings, pipeline.scheduler
    scheduler.set_timesteps(settings.steps, device=context.model.device)
    pipeline._num_timesteps = len(scheduler.timesteps)
    report = step_callback(context)
    for index, timestep in enumerate(scheduler.timesteps):
        seen = latents.to(context.model.dtype)
        prediction = predict(seen, timestep, texts[0])
        if len(texts) > 1:
            negative = predict(seen, timestep, texts[1])
            prediction = negative + settings.guidance_scale * (prediction - negative)
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        latents = keep(seen, latents)
        report(pipeline, index, timestep, {"latents": latents})
    return latents


# --- the VAE ---------------------------------------------------------------------------------


@contextmanager
def placed(context: RenderContext, pipeline: Any) -> Iterator[None]:
    """The pipeline's parts on the device, its VAE rounding as this trainer version's does."""
    norms = norms_of(pipeline.vae, context.profile, "wan_vae_norm_in_fp32")
    with norms, context.place(pipeline):
        yield


def latent_scale(vae: Any, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and 1 / deviation of the VAE's channels, (1, C, 1, 1, 1), in the latents' precision."""
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(latents.device, latents.dtype)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, 1.0 / std


def decoded(
    context: RenderContext, pipeline: Any, latents: torch.Tensor, tiled: bool = False
) -> np.ndarray:
    """The clip's frames, uint8 (F, H, W, 3); one frame is a picture.

    tiled: in overlapping tiles of 256 px.
    """
    latents = latents.to(context.model.device, context.model.dtype)
    mean, scale = latent_scale(pipeline.vae, latents)
    with in_tiles(pipeline.vae, tiled):
        video = pipeline.vae.decode(latents / scale + mean, return_dict=False)[0]
    return video_frames(video[0])


def is_tiled(context: RenderContext) -> bool:
    """Whether this trainer version decodes in tiles, where the model's clips start from text."""
    asked = context.settings.low_vram or TILING.name in context.settings.switches
    return asked and context.profile.has(TILING.known)


def video_frames(video: torch.Tensor) -> np.ndarray:
    """Pixels (3, F, H, W) from -1 to 1 as uint8 (F, H, W, 3), rounded in their precision first."""
    frames = np.empty((*video.shape[1:], video.shape[0]), np.uint8)
    for index in range(video.shape[1]):
        pixels = (video[:, index] * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0)
        frames[index] = (pixels.float().cpu().numpy() * 255).round().astype(np.uint8)
    return frames
