"""OmniGen2, from text alone or with a picture to look at.

The network is the trainer's own class: diffusers has none.
Upstream: ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/omnigen2/__init__.py
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..core.errors import InvalidInputError
from ..core.specs import ControlImages, Defaults, LoraLayout, ModelSpec, Quantizing

NETWORK = (
    "extensions_built_in.diffusion_models.omnigen2.src.models.transformers.transformer_omnigen2"
)
SYSTEM = (
    "You are a helpful assistant that generates high-quality images based on user instructions."
)
TOKENS = 256
MOST_PIXELS = 1024 * 1024
LONGEST_SIDE = 1024  # px, of a control image
GRID = 16  # px
ROTARY_BASE = 10000
SHIFTED_FROM = 40  # latents a side at which the time grid is even


def network_class() -> Any:
    """The trainer's class of the network. Raises MissingDependencyError if it is not here."""
    from ._vendor import trainer_module

    return trainer_module(NETWORK).OmniGen2Transformer2DModel


def load_omnigen2(spec: ModelSpec, source: Path, dtype: Any) -> dict[str, Any]:
    """The parts of a checkpoint, through bf16, as the trainer loads them for every precision.

    Without the vision tower: control images go to the transformer alone.
    """
    import diffusers
    import torch
    import transformers

    def read(module_class: Any, name: str) -> Any:
        return module_class.from_pretrained(
            str(source / name), torch_dtype=torch.bfloat16, use_safetensors=True
        )

    mllm = read(transformers.Qwen2_5_VLForConditionalGeneration, "mllm")
    mllm.model.visual = None
    return {
        "processor": transformers.AutoTokenizer.from_pretrained(
            str(source / "processor"), trust_remote_code=False
        ),
        "mllm": mllm,
        "transformer": read(network_class(), "transformer"),
        "vae": read(diffusers.AutoencoderKL, "vae"),
    }


def render_omnigen2(context: Any) -> Any:
    """OmniGen2 frames, uint8 (1, H, W, 3): drawn at sampled_size, resized to what is asked for."""
    import torch.nn.functional as F
    from diffusers.image_processor import VaeImageProcessor

    from ._render import frames

    settings, vae = context.settings, context.model.modules["vae"]
    with context.place(_pipeline(context.model)):
        latents = _denoise(context) / vae.config.scaling_factor + vae.config.shift_factor
        image = vae.decode(latents, return_dict=False)[0]
        image = F.interpolate(image, size=(settings.height, settings.width), mode="bilinear")
        pictures: Any = VaeImageProcessor().postprocess(image, output_type="pil")
        return frames(pictures[0])


def sampled_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) at which a size asked for is drawn, px: at most a megapixel, on the grid."""
    ratio = min((MOST_PIXELS / (height * width)) ** 0.5, 1.0)
    return int(width * ratio) // GRID * GRID, int(height * ratio) // GRID * GRID


def reference_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) at which a control image is read for a sample of that size, px."""
    ratio = min((MOST_PIXELS / (height * width)) ** 0.5, LONGEST_SIDE / max(width, height), 1.0)
    return int(width * ratio) // GRID * GRID, int(height * ratio) // GRID * GRID


def time_grid(steps: int, tokens: int) -> Any:
    """Where each step starts and the last one ends, fp32 (steps + 1,): from 0 for noise to 1.

    tokens: latents of the picture; more of them give more steps to the noise.
    """
    import numpy as np
    import torch

    even = np.linspace(0, 1, steps + 1, dtype=np.float32)[:-1].astype(np.float64)
    strength = math.sqrt(tokens) / SHIFTED_FROM
    # the trainer rounds the even grid to fp32, and so each product with it
    times = even / (strength - strength * even + even)
    return torch.cat([torch.from_numpy(times).to(torch.float32), torch.ones(1)])


def _denoise(context: Any) -> Any:
    # scaled latents (1, 16, h, w)
    import torch

    from ._render import step_callback

    settings, model = context.settings, context.model
    width, height = sampled_size(settings.width, settings.height)
    times = time_grid(settings.steps, (width // 8) * (height // 8))
    skipped = settings.steps - min(settings.steps * settings.denoise, settings.steps)
    times = times[int(skipped) :].to(model.device)
    positive = _encode(context, settings.prompt)
    negative = _encode(context, settings.negative_prompt)
    seen = _references(context)  # before the noise, which may come from the same generator
    latents = _start(context, width, height, float(times[0]))
    frequencies = _frequencies(model.modules["transformer"])
    report = step_callback(context)
    steps = SimpleNamespace(num_timesteps=len(times) - 1)
    for index, (time, following) in enumerate(pairwise(times)):
        velocity = _velocity(context, latents, time, positive, frequencies, seen)
        if settings.guidance_scale > 1:
            away = _velocity(context, latents, time, negative, frequencies, seen)
            velocity = away + settings.guidance_scale * (velocity - away)
        moved = latents.to(torch.float32) + (following - time) * velocity
        latents = moved.to(velocity.dtype)
        report(steps, index, time, {"latents": latents})
    return latents


def _velocity(context: Any, latents: Any, time: Any, text: Any, frequencies: Any, seen: Any) -> Any:
    # from noise to picture, (1, 16, h, w); text: hidden states and their mask
    hidden, mask = text
    transformer = context.model.modules["transformer"]
    time = time.expand(1).to(latents.dtype)
    return transformer(latents, time, hidden, frequencies, mask, ref_image_hidden_states=seen)


def check_reference(_request: Any, settings: Any) -> None:
    """Raises InvalidInputError for sizes in which a control image would have no width or height."""
    if 0 in reference_size(settings.width, settings.height):
        raise InvalidInputError(
            f"{settings.width}x{settings.height} px; a control image is read in the sample's shape "
            f"with {LONGEST_SIDE} px at most, where one this narrow has a side below {GRID} px: "
            "ask for a wider shape, or leave the control image out"
        )


def _references(context: Any) -> Any:
    # of the one sample of the batch its control images' scaled latents, (16, h, w) each; or None
    from diffusers.image_processor import VaeImageProcessor

    from ._control_images import stretched_off_grid
    from ._render import scaled_latents

    settings, vae = context.settings, context.model.modules["vae"]
    if not context.control_images:
        return None
    width, height = reference_size(settings.width, settings.height)
    image = stretched_off_grid(context.control_images[0], settings)
    pixels = VaeImageProcessor(vae_scale_factor=GRID).preprocess(image, height, width)
    posterior = vae.encode(pixels.to(context.model.device, vae.dtype)).latent_dist
    # without a generator, so from the device's own, as in the trainer
    return [[scaled_latents(vae.config, posterior.sample()).squeeze(0)]]


def _frequencies(transformer: Any) -> Any:
    return transformer.rope_embedder.get_freqs_cis(
        transformer.config.axes_dim_rope, transformer.config.axes_lens, theta=ROTARY_BASE
    )


def _encode(context: Any, prompt: str) -> tuple[Any, Any]:
    # the last hidden state (1, L, C) of the prompt, and its mask (1, L): nothing is padded
    model = context.model
    tokens = model.tokenizers["processor"](
        [in_template(model.tokenizers["processor"], prompt)],
        padding="longest",
        max_length=TOKENS,
        truncation=True,
        return_tensors="pt",
    ).to(model.device)
    output = model.modules["mllm"](
        tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True
    )
    return output.hidden_states[-1].to(model.device, model.dtype), tokens.attention_mask


def in_template(tokenizer: Any, prompt: str) -> str:
    """The prompt as a message of a conversation, and that as a message of another, as trained."""
    for _ in range(2):
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=False
        )
    return prompt


def _start(context: Any, width: int, height: int, time: float) -> Any:
    # noise alone, or as much of it over the given latents as the first step asks for
    import torch

    from ._flow import start_latents

    settings, model = context.settings, context.model
    if settings.denoise == 1:
        shape = (1, model.spec.latent_channels, height // 8, width // 8)
        noise = torch.randn(shape, generator=context.generator, dtype=model.dtype)
        return noise.to(model.device)
    if (settings.width, settings.height) != (width, height):
        raise InvalidInputError(
            f"latents of {settings.width}x{settings.height} px, but omnigen2 samples this size at "
            f"{width}x{height} px: encode the picture at that size"
        )
    return start_latents(context, 1 - time)


def _pipeline(model: Any) -> Any:
    # never called: it tells offloading what works when
    import diffusers

    class OmniGen2Pipeline(diffusers.DiffusionPipeline):
        model_cpu_offload_seq = "mllm->transformer->vae"

        def __init__(self, mllm: Any, transformer: Any, vae: Any) -> None:
            super().__init__()
            self.register_modules(mllm=mllm, transformer=transformer, vae=vae)

    return OmniGen2Pipeline(**model.modules)


def build_tiny_omnigen2(seed: int) -> dict[str, Any]:
    """The parts of a toy OmniGen2, real classes."""
    from . import _tiny
    from ._tiny_qwen import WIDTH, qwen25_vl, qwen25_vl_processor_files

    network: Any = network_class()(
        hidden_size=48,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=32,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(1024, 1664, 1664),
        text_feat_dim=WIDTH,
        timestep_scale=1000.0,
    )
    return {
        "processor": qwen25_vl_processor_files(),
        "mllm": qwen25_vl(seed),
        "transformer": _tiny.fill(network, seed),
        "vae": _tiny.autoencoder_kl(
            seed, latent_channels=16, scaling_factor=0.3611, shift_factor=0.1159
        ),
        "scheduler": _tiny.scheduler("FlowMatchEulerDiscreteScheduler"),
    }


OMNIGEN2 = ModelSpec(
    id="omnigen2",
    title="OmniGen2",
    task="text-to-image",
    arch="omnigen2",
    repo_id="OmniGen2/OmniGen2",
    pipeline="OmniGen2Pipeline",
    latent_channels=16,
    multiple_of=8,
    defaults=Defaults(width=1024, height=1024, steps=25, guidance_scale=4.0, sampler="flowmatch"),
    samplers=("flowmatch",),
    lora=LoraLayout(
        prefixes=(("diffusion_model", "transformer"),),
        separator=".",
        alpha=False,
        targets=("noise_refiner.", "context_refiner.", "layers."),
        base_model="omnigen2",
    ),
    source="ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/omnigen2/",
    components=("mllm", "transformer", "vae"),
    quantizing=Quantizing(encoders=("mllm",)),
    control_images=ControlImages(0, 1),
    check_images=check_reference,
    network=NETWORK,
    load=load_omnigen2,
    render=render_omnigen2,
    build_tiny=build_tiny_omnigen2,
    notes=(
        "The prompt is put into the chat template twice, the system prompt with it, and cut to "
        "256 tokens.",
        "Time runs from 0 for noise to 1, on a grid of its own; no sigmas of other schedulers.",
        "It is drawn on a grid of 16 px, at most a megapixel, then resized to the size asked for.",
        "A control image is stretched to the sample's size, bilinearly with Pillow, then shrunk "
        "with Lanczos to a megapixel, sides of 1024 px and the grid. The trainer takes one, "
        "`ctrl_img`.",
        "The text encoder does not see it, and the negative prompt's prediction does: the image "
        "guidance is 1, where OmniGen2's own script for edits has 2.",
        "Its latents are drawn from the VAE's posterior with the generator of the device. On a CPU "
        "that is the one the noise comes from afterwards, so only a GPU can show that both agree "
        "there, and another kind of GPU may draw otherwise.",
        "Norms and activations are those of triton and flash-attn where they are installed, here "
        "as in the trainer: compare with a trainer that has the same.",
    ),
)
MODELS = (OMNIGEN2,)
