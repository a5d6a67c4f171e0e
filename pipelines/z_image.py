"""Z-Image, its Turbo, and the Turbo without distillation.

Upstream: ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/z_image/z_image.py
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.specs import BaseLoras, Defaults, LoraLayout, ModelSpec, Quantizing
from ..core.versions import Profile

QWEN_TOKENS = 512
SCHEDULER = {"num_train_timesteps": 1000, "use_dynamic_shifting": False, "shift": 3.0}


def load_z_image(
    spec: ModelSpec, source: Path, dtype: Any, folder: Path | None = None
) -> dict[str, Any]:
    """The parts of a checkpoint.

    source: a folder; or the transformer in a file of the first release, with the rest in `folder`.
    """
    from ._loading import read_with_file

    return read_with_file(spec, source, dtype, folder, "ZImageTransformer2DModel").components


def render_z_image(context: Any) -> Any:
    """Z-Image frames, uint8 (1, H, W, 3). Latents and steps are fp32 in every precision."""
    import diffusers
    import torch

    from ._flow import start_latents
    from ._render import frames, step_callback

    settings, model = context.settings, context.model
    sigmas = noise_levels(settings.steps, settings.denoise)
    scheduler = z_image_scheduler(context.profile, settings.steps)
    scheduler.set_timesteps(sigmas=sigmas)
    latents = None
    if settings.denoise < 1:
        latents = start_latents(context, float(scheduler.sigmas[0]), torch.float32)
    pipeline: Any = diffusers.ZImagePipeline(**model.parts(), scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    with masks_of(model.modules["transformer"], context.profile), context.place(pipeline):
        output: Any = pipeline(
            prompt_embeds=_encode(pipeline, context, settings.prompt),
            negative_prompt_embeds=_encode(pipeline, context, settings.negative_prompt),
            height=settings.height,
            width=settings.width,
            sigmas=sigmas,
            guidance_scale=pipeline_guidance(context.profile, settings.guidance_scale),
            generator=context.generator,
            latents=latents,
            callback_on_step_end=step_callback(context),
        )
        return frames(output.images[0])


def noise_levels(steps: int, denoise: float = 1.0) -> list[float]:
    """The noise levels of the steps that are run, before their shift: from 1 down to 1 / steps."""
    import torch

    return torch.linspace(1.0, 1 / steps, steps).tolist()[int(steps - steps * denoise) :]


def pipeline_guidance(profile: Profile, guidance_scale: float) -> float:
    """What the pipeline is given as guidance: g in `positive + g * (positive - negative)`.

    At 0 the negative prompt is not looked at.
    """
    if profile.has("z_image_guidance_from_one"):
        return max(0.0, guidance_scale - 1.0)
    least = 0 if profile.has("z_image_guidance_above_zero") else 1
    return guidance_scale if guidance_scale > least else 0.0


def z_image_scheduler(profile: Profile, steps: int) -> Any:
    """The trainer's flow-match scheduler, of static shift 3.0.

    In versions whose last step is none it takes no more from given sigmas than their number.
    Upstream, for these: huggingface/diffusers@8600b4c1
    src/diffusers/pipelines/z_image/pipeline_z_image.py::ZImagePipeline.__call__
    """
    import diffusers

    class TrainerZImageScheduler(diffusers.FlowMatchEulerDiscreteScheduler):
        def set_timesteps(  # type: ignore[override]
            self, num_inference_steps: Any = None, device: Any = None, sigmas: Any = (), **_: Any
        ) -> None:
            self.sigma_min = 0.0
            super().set_timesteps(steps, device)
            self.timesteps = self.timesteps[-len(sigmas) :]
            self.sigmas = self.sigmas[-len(sigmas) - 1 :]

    if profile.has("z_image_steps_all_count"):
        return diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULER)
    return TrainerZImageScheduler(**SCHEDULER)


@contextmanager
def masks_of(transformer: Any, profile: Profile) -> Iterator[None]:
    """Every attention of the transformer has a mask in versions that always made one.

    A mask that hides nothing changes no value but makes torch choose another kernel.
    """
    import torch

    def with_mask(_module: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if options.get("attention_mask") is None:
            hidden = inputs[0]
            ones = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
            options = options | {"attention_mask": ones}
        return inputs, options

    parts = [] if profile.has("z_image_mask_where_needed") else transformer.modules()
    hooks = [
        module.register_forward_pre_hook(with_mask, with_kwargs=True)
        for module in parts
        if type(module).__name__ == "Attention"
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _encode(pipeline: Any, context: Any, prompt: str) -> list[Any]:
    # one (L, C) for the L tokens that are not padding
    embeds, _ = pipeline.encode_prompt(
        prompt,
        device=context.model.device,
        do_classifier_free_guidance=False,
        max_sequence_length=QWEN_TOKENS,
    )
    return [part.to(context.model.device, context.model.dtype) for part in embeds]


def build_tiny_z_image(seed: int, layers: int = 2) -> dict[str, Any]:
    """The parts of a toy Z-Image, real classes."""
    from diffusers import ZImageTransformer2DModel

    from . import _tiny, _tiny_language

    transformer = ZImageTransformer2DModel(
        dim=64,
        n_layers=layers,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[8, 12, 12],
    )
    return {
        "tokenizer": _tiny_language.qwen3_tokenizer_files(),
        "text_encoder": _tiny_language.qwen3(seed),
        "transformer": _tiny.fill(transformer, seed),
        "vae": _tiny.autoencoder_kl(
            seed, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159
        ),
        "scheduler": _tiny.scheduler("FlowMatchEulerDiscreteScheduler", **SCHEDULER),
    }


# What stays in full precision where the rest is quantized.
KEPT = ("t_embedder*", "cap_embedder*", "all_x_embedder*", "all_final_layer*", "siglip_embedder*")
Z_IMAGE = ModelSpec(
    id="zimage",
    title="Z-Image",
    task="text-to-image",
    arch="zimage",
    repo_id="Tongyi-MAI/Z-Image",
    pipeline="ZImagePipeline",
    latent_channels=16,
    multiple_of=16,
    multiple_of_before=("z_image_sides_of_16", 32),
    defaults=Defaults(width=1024, height=1024, steps=30, guidance_scale=4.0, sampler="flowmatch"),
    samplers=("flowmatch",),
    lora=LoraLayout(
        prefixes=(("diffusion_model", "transformer"),),
        separator=".",
        alpha=False,
        targets=("layers",),
        base_model="zimage",
    ),
    base_loras=BaseLoras(
        fields=("assistant_lora_path",), layer="diffusion_model.layers.0.attention.to_k"
    ),
    source="ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/z_image/z_image.py",
    components=("text_encoder", "transformer", "vae"),
    quantizing=Quantizing(
        encoders=("text_encoder",),
        recovers=True,
        keeps=KEPT,
        keeps_since="z_image_ends_in_full_precision",
        offloads=("transformer",),
        offloads_first=("text_encoder",),
        float8_with_assistant=True,
    ),
    part_file="transformer",
    load=load_z_image,
    notes=(
        "Trainer versions before 0.10.24 spend the last of the steps on nothing and spread the "
        "others wider; diffusers did so before 0.39.",
        "guidance_scale is the trainer's: since 0.10.21 it is 1 more than what diffusers takes "
        "under this name; before, the same number.",
        "Before 0.9.14 sides were multiples of 32 px.",
        "Latents, guidance and steps are fp32, also in bf16.",
        "The hidden states of the prompt are those of the last but one layer of Qwen3, of its "
        "chat template with thinking allowed, without padding.",
    ),
    render=render_z_image,
    build_tiny=build_tiny_z_image,
)
Z_IMAGE_TURBO = replace(
    Z_IMAGE,
    id="zimage_turbo",
    title="Z-Image Turbo",
    arch="zimage:turbo",
    repo_id="Tongyi-MAI/Z-Image-Turbo",
    defaults=replace(Z_IMAGE.defaults, steps=9, guidance_scale=1.0),
    build_tiny=lambda seed: build_tiny_z_image(seed, layers=1),
)
Z_IMAGE_DETURBO = replace(
    Z_IMAGE,
    id="zimage_deturbo",
    title="Z-Image De-Turbo",
    arch="zimage:deturbo",
    repo_id="ostris/Z-Image-De-Turbo",
    rest_repo_id="Tongyi-MAI/Z-Image-Turbo",
    defaults=replace(Z_IMAGE.defaults, steps=25, guidance_scale=3.0),
    build_tiny=lambda seed: build_tiny_z_image(seed, layers=3),
)
MODELS = (Z_IMAGE_TURBO, Z_IMAGE, Z_IMAGE_DETURBO)
