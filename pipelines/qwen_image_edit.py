"""Qwen-Image-Edit, and Edit Plus (2509, 2511), which takes up to three pictures.

Upstream: ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/qwen_image/
qwen_image_edit.py, qwen_image_edit_plus.py
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..core.errors import InvalidInputError
from ..core.specs import ControlImages, ModelSpec, Switch
from .qwen_image import QWEN_IMAGE, SCHEDULER, TILES, build_tiny_qwen_image, check_steps

TEXT_PIXELS = 1024 * 1024  # of a picture beside the prompt
TEXT_PIXELS_PLUS = 384 * 384
TOY_PIXELS = 192 * 192
# Longer side by shorter one of a picture, up to which it can be shown beside the prompt.
LONGEST = 163
LONGEST_PLUS = 279


def check_edit(settings: Any) -> None:
    """Raises InvalidInputError for one step, and for prompts that stand for pictures."""
    from ._qwen_edit import IMAGE_TOKEN

    check_steps(settings)
    if IMAGE_TOKEN in settings.prompt + settings.negative_prompt:
        raise InvalidInputError(
            f"the prompt holds {IMAGE_TOKEN}, which stands for a picture; leave it out: control "
            "images are put in front of the prompt anyway"
        )


def check_pictures(request: Any, _settings: Any, longest: int = LONGEST) -> None:
    """Raises InvalidInputError for control images that the trainer's text encoder fails on."""
    for number, image in enumerate(request.control_images, 1):
        if max(image.size) > longest * min(image.size):
            raise InvalidInputError(
                f"control image {number} is {image.width}x{image.height} px; its longer side may "
                f"be at most {longest} times the shorter: crop it"
            )


def load_qwen_edit(
    spec: ModelSpec, source: Path, dtype: Any, folder: Path | None = None
) -> dict[str, Any]:
    """The parts of a checkpoint; the tokenizer is its processor's.

    source: a folder; or the transformer in a file, with the rest in `folder`. In a file it is
    Qwen-Image's for the trainer, so that 2511 reads its pictures at the time of the step.
    """
    from ._loading import read_with_file
    from ._qwen_edit import look_as_trainer, read_picture_reader, read_tokenizer

    processor = (folder or source) / "processor"
    parts = {
        "processor": read_picture_reader(processor),
        "tokenizer": read_tokenizer(processor),
    }
    denoiser = "QwenImageTransformer2DModel"
    pipeline = read_with_file(
        spec, source, dtype, folder, denoiser, without=tuple(parts), zero_cond_t=False
    )
    look_as_trainer(pipeline.text_encoder)
    return pipeline.components | parts


def render_qwen_edit(context: Any) -> Any:
    """Qwen-Image-Edit frames, uint8 (1, H, W, 3). Above 1, guidance_scale is true guidance."""
    from ._control_images import stretched

    settings, image = context.settings, context.control_images[0].convert("RGB")
    fitted = stretched(image, settings.width, settings.height)
    return _render(context, [image], [fitted], plus=False)


def render_qwen_edit_plus(context: Any) -> Any:
    """Qwen-Image-Edit Plus frames, uint8 (1, H, W, 3). Above 1, guidance_scale is true guidance.

    Of a job that names its first picture `ctrl_img`, the text encoder is shown that one twice.
    """
    images = [image.convert("RGB") for image in context.control_images]
    doubled = images[:1] if context.settings.doubled_control else []
    return _render(context, doubled + images, images, plus=True)


def _render(context: Any, shown: list[Any], references: list[Any], plus: bool) -> Any:
    # shown: RGB images for the text encoder. references: those for the VAE
    import diffusers

    from ._qwen_vae import in_tiles, is_tiled, norms_of
    from ._render import frames
    from ._schedulers import flow_match_scheduler

    model = context.model
    pipeline_class: Any = getattr(diffusers, model.spec.pipeline)
    pipeline = pipeline_class(
        **model.modules,
        tokenizer=None,
        processor=None,
        scheduler=flow_match_scheduler(SCHEDULER),
    )
    tiles = in_tiles(pipeline.vae, is_tiled(context))
    with norms_of(pipeline.vae, context.profile), tiles, context.place(pipeline):
        texts = _encode(context, shown, plus)
        behind = [_reference(context, pipeline, image) for image in references]
        keep_length = not plus or "do_cfg_norm" in context.settings.switches
        latents = _denoise(context, pipeline, texts, behind, keep_length)
        return frames(_decode(context, pipeline, latents))


def _encode(context: Any, images: list[Any], plus: bool) -> list[Any]:
    # what the transformer reads of the prompt and, if it is guided, of the negative one
    from ._qwen_edit import as_tensor, encode, in_template, to_area

    settings, model = context.settings, context.model
    pictures = [as_tensor(image, model.device, model.dtype) for image in images]
    texts = []
    for prompt in (settings.prompt, settings.negative_prompt)[: 2 if _guided(settings) else 1]:
        area = TEXT_PIXELS_PLUS if plus else TEXT_PIXELS
        resized = [to_area(picture, area, context.profile) for picture in pictures]
        lead = _lead(len(images), plus)
        texts.append(encode(context, resized, in_template(lead + prompt)))
        if plus:  # the trainer takes what it resized for the first prompt, and resizes it again
            pictures = resized
    return texts


def _lead(pictures: int, plus: bool) -> str:
    from ._qwen_edit import IMAGE_TOKEN

    picture = f"<|vision_start|>{IMAGE_TOKEN}<|vision_end|>"
    numbers = range(1, pictures + 1)
    return "".join(f"Picture {number}: {picture}" for number in numbers) if plus else picture


def _reference(context: Any, pipeline: Any, image: Any) -> tuple[Any, tuple[int, int, int]]:
    """The VAE's likeliest latents of a picture, packed, (1, tokens, 64), and their grid."""
    from ._qwen_edit import VAE_PIXELS, sides_of_area
    from ._render import scaled_latents

    model = context.model
    most = model.tokenizers["processor"].reference_pixels
    width, height = sides_of_area(min(VAE_PIXELS, most), image.width / image.height)
    pixels = pipeline.image_processor.preprocess(image, height, width)[:, :, None]
    latents = pipeline.vae.encode(pixels.to(model.device, model.dtype)).latent_dist.mode()
    latents = scaled_latents(pipeline.vae.config, latents)
    *_, rows, columns = latents.shape
    packed = pipeline._pack_latents(latents, 1, latents.shape[1], rows, columns)
    return packed, (1, rows // 2, columns // 2)


def _denoise(
    context: Any, pipeline: Any, texts: list[Any], references: list[Any], keep_length: bool
) -> Any:
    # packed latents (1, tokens, 64). keep_length: per token, as long as the positive prediction
    import torch

    from ._flow import set_flux_timesteps, start_packed
    from ._render import step_callback

    settings, scheduler = context.settings, pipeline.scheduler
    timesteps = set_flux_timesteps(scheduler, settings, context.model.device)
    scheduler.set_begin_index(0)
    pipeline._num_timesteps = len(timesteps)
    latents = start_packed(context, pipeline)
    behind = [tokens for tokens, _ in references]
    grids = [(1, settings.height // 16, settings.width // 16), *(grid for _, grid in references)]
    report = step_callback(context, lambda packed: _unpack(context, pipeline, packed)[:, :, 0])
    for index, timestep in enumerate(timesteps):
        given = torch.cat([latents, *behind], dim=1)
        time = timestep.expand(1).to(latents.dtype) / 1000
        velocity, *away = (
            pipeline.transformer(
                hidden_states=given,
                timestep=time,
                encoder_hidden_states=text,
                encoder_hidden_states_mask=None,  # nothing is padded
                img_shapes=[grids],
                return_dict=False,
            )[0][:, : latents.shape[1]]
            for text in texts
        )
        for negative in away:
            velocity = _guide(velocity, negative, settings.guidance_scale, keep_length)
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        report(pipeline, index, timestep, {"latents": latents})
    return latents


def _guide(positive: Any, negative: Any, scale: float, keep_length: bool) -> Any:
    import torch

    guided = negative + scale * (positive - negative)
    if not keep_length:
        return guided
    lengths = [torch.norm(velocity, dim=-1, keepdim=True) for velocity in (positive, guided)]
    return guided * (lengths[0] / lengths[1])


def _decode(context: Any, pipeline: Any, packed: Any) -> Any:
    # the picture of the sample, a PIL image
    import torch

    vae = pipeline.vae
    latents = _unpack(context, pipeline, packed).to(vae.dtype)
    mean, std = (
        torch.tensor(values, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    # by its reciprocal, as the pipelines have it, which rounds otherwise than the product
    image = vae.decode(latents / (1.0 / std) + mean, return_dict=False)[0][:, :, 0]
    return pipeline.image_processor.postprocess(image, output_type="pil")[0]


def _unpack(context: Any, pipeline: Any, packed: Any) -> Any:
    settings = context.settings
    size = settings.height, settings.width
    return pipeline._unpack_latents(packed, *size, pipeline.vae_scale_factor)


def _guided(settings: Any) -> bool:
    return settings.guidance_scale > 1


def build_tiny_qwen_edit(seed: int, layers: int = 2, **config: Any) -> dict[str, Any]:
    """The parts of a toy Qwen-Image-Edit, real classes; it is given smaller pictures."""
    from ._tiny_qwen import qwen25_vl_processor_files

    sizes = {"max_pixels": TOY_PIXELS, "reference_pixels": TOY_PIXELS}
    processor = qwen25_vl_processor_files("Qwen2VLProcessor", **sizes)
    return build_tiny_qwen_image(seed, layers, **config) | {"processor": processor}


NOTES = (
    "The text encoder is shown control images whose values were divided by 255 twice, all but "
    "black, as the trainer shows them; with the picture itself 8 levels change (of the tiny model "
    "in bf16, as in all of these).",
    "Since trainer 0.9.1 the text encoder counts a picture's tokens one by one, like words; "
    "before, and wherever transformers is told which tokens are pictures, by row and column "
    "(6 levels).",
    "Before trainer 0.7.33 the text encoder was shown pictures with height and width swapped "
    "(5 levels).",
    "Pictures are prepared with torch alone. Other stacks follow transformers' image processor, "
    "which resizes otherwise without torchvision (7 levels), and the vision tower, which "
    "transformers 5.23 turns in fp32 (8 levels).",
    "Its schedule ends at 0.02 before the last step, and shifts between 256 and 8192 tokens of the "
    "sample, whatever the control images add. Only the noise is random: of a picture the VAE's "
    "likeliest latents are taken.",
    "Trainers before 0.9.1 normalise in the VAE in bf16, later ones in fp32.",
    f"{TILES} Control images, of a megapixel, are encoded in tiles as well.",
)
EDIT_NOTES = (
    "The control image is stretched to the sample's size (Pillow, bilinear), then resized to a "
    "megapixel; other stacks leave out the first of these (6 levels).",
    "Guidance is rescaled per token to the length of the positive prediction (5 levels).",
)
PLUS_NOTES = (
    "Guidance is not rescaled to the length of the positive prediction, as diffusers always does "
    "(6 levels); the trainer does with the switch `do_cfg_norm`, of a job's `sample` section.",
    "A job that names its first picture `ctrl_img` instead of `ctrl_img_1` shows it to the text "
    "encoder twice, and to the VAE once (7 levels): that is doubled_control.",
    "For the negative prompt pictures are resized from what the positive one left of them, so that "
    "trainers before 0.7.33 show them to it upright again.",
)
QWEN_IMAGE_EDIT = replace(
    QWEN_IMAGE,
    id="qwen_image_edit",
    title="Qwen-Image-Edit",
    task="edit",
    arch="qwen_image_edit",
    repo_id="Qwen/Qwen-Image-Edit",
    pipeline="QwenImageEditPipeline",
    control_images=ControlImages(required=1, most=1),
    check_images=check_pictures,
    load=load_qwen_edit,
    check=check_edit,
    notes=(*EDIT_NOTES, *NOTES),
    render=render_qwen_edit,
    build_tiny=build_tiny_qwen_edit,
)
QWEN_IMAGE_EDIT_PLUS = replace(
    QWEN_IMAGE_EDIT,
    id="qwen_image_edit_plus",
    title="Qwen-Image-Edit Plus (2509)",
    arch="qwen_image_edit_plus",
    repo_id="Qwen/Qwen-Image-Edit-2509",
    pipeline="QwenImageEditPlusPipeline",
    control_images=ControlImages(required=1, most=3, doubled=True),
    check_images=partial(check_pictures, longest=LONGEST_PLUS),
    switches=(Switch("do_cfg_norm"),),
    notes=(*PLUS_NOTES, *NOTES),
    render=render_qwen_edit_plus,
    build_tiny=lambda seed: build_tiny_qwen_edit(seed, layers=1),
)
QWEN_IMAGE_EDIT_PLUS_2511 = replace(
    QWEN_IMAGE_EDIT_PLUS,
    id="qwen_image_edit_plus_2511",
    title="Qwen-Image-Edit Plus 2511",
    arch="qwen_image_edit_plus:2511",
    repo_id="Qwen/Qwen-Image-Edit-2511",
    notes=(
        *PLUS_NOTES,
        "The network reads pictures as at time 0. The trainer reads a transformer in a file of its "
        "own with Qwen-Image's configuration, which lacks that, and so does this.",
        *NOTES,
    ),
    build_tiny=lambda seed: build_tiny_qwen_edit(seed, layers=1, zero_cond_t=True),
)
MODELS = (QWEN_IMAGE_EDIT, QWEN_IMAGE_EDIT_PLUS, QWEN_IMAGE_EDIT_PLUS_2511)
