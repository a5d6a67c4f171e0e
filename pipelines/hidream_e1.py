"""HiDream E1, which edits a picture: it stands to the right of what is drawn, in the same latents.

The parts are HiDream I1's, and the network is that of diffusers, as in the trainer. No pipeline of
diffusers edits with it, so the steps are here.
Upstream: ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/hidream/
hidream_e1_model.py::HidreamE1Model
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..core.errors import InvalidInputError
from ..core.specs import ControlImages
from .hidream import HIDREAM, build_tiny_hidream, check_steps, encode_prompts

SHIFT = 3.0  # of the noise levels
IMAGE_GUIDANCE = 2.0  # how far from the prompt without the picture
TOKEN_PIXELS = 16  # px a side
TINY_LATENTS = (32, 64)  # two squares of 256 px


def check_hidream_e1(settings: Any) -> None:
    """Raises InvalidInputError for so many steps that the trainer's scheduler fails."""
    check_steps(settings.steps, SHIFT)


def render_hidream_e1(context: Any) -> Any:
    """HiDream E1 frames, uint8 (1, H, W, 3)."""
    import diffusers

    from ._render import frames
    from ._unipc import FlowUniPC

    settings, model = context.settings, context.model
    _check_tokens(settings, model.modules["transformer"].max_seq)
    skipped = settings.steps - min(settings.steps * settings.denoise, settings.steps)
    scheduler: Any = FlowUniPC(SHIFT, int(skipped))
    pipeline: Any = diffusers.HiDreamImagePipeline(**model.parts(), scheduler=scheduler)
    with context.place(pipeline):
        latents, config = _denoise(context, pipeline), pipeline.vae.config
        unscaled = latents / config.scaling_factor + config.shift_factor
        image = pipeline.vae.decode(unscaled, return_dict=False)[0]
        return frames(pipeline.image_processor.postprocess(image, output_type="pil")[0])


def _check_tokens(settings: Any, most: int) -> None:
    # most: of the network where its latents are no square; it pads them to so many
    rows, columns = settings.height // TOKEN_PIXELS, 2 * settings.width // TOKEN_PIXELS
    if rows != columns and rows * columns > most:
        raise InvalidInputError(
            f"{settings.width}x{settings.height} px are {rows * columns} tokens beside the "
            f"picture that is edited, but this checkpoint's network takes {most}, and the trainer "
            f"fails; ask for at most {most // 2 * TOKEN_PIXELS**2} pixels"
        )


def _denoise(context: Any, pipeline: Any) -> Any:
    # scaled latents (1, 16, h, w)
    from ._render import step_callback

    scheduler = pipeline.scheduler
    predict = _prediction(context, pipeline)
    scheduler.set_timesteps(context.settings.steps, device=context.model.device)
    pipeline._num_timesteps = len(scheduler.timesteps)
    latents = _start(context, float(scheduler.sigmas[0]))
    report = step_callback(context)
    for index, timestep in enumerate(scheduler.timesteps):
        latents = scheduler.step(predict(latents, timestep), timestep, latents)[0]
        report(pipeline, index, timestep, {"latents": latents})
    return latents


def _start(context: Any, sigma: float) -> Any:
    import torch

    from ._flow import start_latents

    settings, model = context.settings, context.model
    if settings.denoise < 1:
        return start_latents(context, sigma)
    shape = (1, model.spec.latent_channels, settings.height // 8, settings.width // 8)
    noise = torch.randn(shape, generator=context.generator, dtype=model.dtype)
    return noise.to(model.device)


def _prediction(context: Any, pipeline: Any) -> Callable[[Any, Any], Any]:
    # (latents, timestep) -> where the noise is, both (1, 16, h, w)
    import torch

    guidance = context.settings.guidance_scale
    texts = _texts(encode_prompts(context, pipeline), guidance > 1)
    picture = _encode(context, pipeline)
    if guidance > 1:
        picture = torch.cat([torch.zeros_like(picture), picture, picture])

    def predict(latents: Any, timestep: Any) -> Any:
        given = torch.cat([torch.cat([latents] * len(picture)), picture], dim=-1)
        predicted = pipeline.transformer(
            hidden_states=given, timesteps=timestep.expand(len(given)), return_dict=False, **texts
        )[0]
        predicted = -predicted[..., : latents.shape[-1]]
        if guidance <= 1:
            return predicted
        blind, unprompted, prompted = predicted.chunk(3)
        return guided(blind, unprompted, prompted, guidance)

    return predict


def guided(blind: Any, unprompted: Any, prompted: Any, guidance: float) -> Any:
    """What three predictions (1, C, h, w) come to: the prompt without the picture, the picture with
    the negative prompt, the picture with the prompt.

    Guided by the prompt first, no longer than without guidance, then by the picture.
    """
    import torch

    toward = unprompted + guidance * (prompted - unprompted)
    lengths = [torch.norm(x, dim=1, keepdim=True) for x in (prompted, toward)]
    toward = toward * (lengths[0] / (lengths[1] + 1e-8)).clamp(min=0.0, max=1.0)
    return blind + IMAGE_GUIDANCE * (toward - blind)


def _texts(embeds: dict[str, Any], both: bool) -> dict[str, Any]:
    # for the prompt, or for the three predictions that are guided by; Llama's layers come first
    import torch

    taken = {
        "pooled_embeds": ("pooled_prompt_embeds", 0),
        "encoder_hidden_states_t5": ("prompt_embeds_t5", 0),
        "encoder_hidden_states_llama3": ("prompt_embeds_llama3", 1),
    }
    return {
        name: torch.cat([embeds[key], embeds[f"negative_{key}"], embeds[key]], dim=batch)
        if both
        else embeds[key]
        for name, (key, batch) in taken.items()
    }


def _encode(context: Any, pipeline: Any) -> Any:
    # the control image's scaled latents (1, 16, h, w), the likeliest of them
    from ._control_images import stretched_off_grid
    from ._render import scaled_latents

    settings, model = context.settings, context.model
    image = stretched_off_grid(context.control_images[0], settings)
    pixels = pipeline.image_processor.preprocess(image, settings.height, settings.width)
    posterior = pipeline.vae.encode(pixels.to(model.device, model.dtype)).latent_dist
    return scaled_latents(pipeline.vae.config, posterior.mode())


HIDREAM_E1 = replace(
    HIDREAM,
    id="hidream_e1",
    title="HiDream E1.1",
    task="edit",
    arch="hidream_e1",
    repo_id="HiDream-ai/HiDream-E1-1",
    pipeline="HiDreamImageEditingPipeline",
    other_pipelines=("HiDreamImagePipeline",),
    multiple_of=16,
    source="ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/hidream/",
    control_images=ControlImages(1, 1),
    check=check_hidream_e1,
    render=render_hidream_e1,
    build_tiny=lambda seed: build_tiny_hidream(seed, TINY_LATENTS),
    notes=(
        "The control image is stretched to the sample's size, bilinearly with Pillow, and then cut "
        "to the grid of 16 px with Lanczos; HiDream's own script keeps its shape and crops.",
        "Image guidance is 2.0 whatever is asked for, where HiDream's own script has 1.5. Before "
        "it, what the prompt's guidance gives is held, pixel by pixel, to the unguided length.",
        "All steps see the picture. HiDream's own script takes the last three in ten without it.",
        "The prompt is read as typed, with no `Editing Instruction:` around it.",
        "Latents that are no square are padded to the most tokens of the checkpoint's "
        "configuration, which changes the picture; a larger sample is refused, as the trainer "
        "fails on it. HiDream's own script raises that number to 8192.",
        "The scheduler is UniPC of order 2 with shift 3 on a grid that starts at 0.99967.",
        "Llama 3.1 8B attends eagerly, and its padding is its end of turn, which the network sees.",
    ),
)
MODELS = (HIDREAM_E1,)
