"""Bodies of the native API to requests of the engine, with names kept inside their folders."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.errors import AdapterError, CheckpointError, InvalidInputError
from ..core.requests import AdapterRef, Recipe, SampleRequest
from ..core.specs import ModelSpec
from ..engine.downloads import is_remote
from ..engine.training_adapters import FIELDS
from ..pipelines._registry import get_model
from .schemas import InferenceRequest, Lora, Prompt
from .settings import Settings

TINY = "tiny"


def check_settings(settings: Settings) -> None:
    """Raises InvalidInputError if the model or the weights that the server names are not there."""
    if settings.model:
        get_model(settings.model)
    find_checkpoint(settings.weights, settings)


def settle(request: InferenceRequest, settings: Settings) -> InferenceRequest:
    """The request with its model, its weights and every seed decided."""
    model = request.model or settings.model
    if not model:
        raise InvalidInputError("the request names no model, nor does the server; see /v1/models")
    seeds = (p.seed if p.seed >= 0 else random.randrange(2**32) for p in request.prompts)
    pairs = zip(request.prompts, seeds, strict=True)
    prompts = [prompt.model_copy(update={"seed": seed}) for prompt, seed in pairs]
    settled = {"model": get_model(model).id, "weights": request.weights or settings.weights}
    return request.model_copy(update=settled | {"prompts": prompts})


def sample_requests(
    request: InferenceRequest, pictures: Sequence[Sequence[Any]], settings: Settings
) -> list[SampleRequest]:
    """What the engine is asked for, one for each prompt. pictures: their control images, of PIL.

    Raises InvalidInputError for what cannot be.
    """
    spec = get_model(request.model)
    recipe = recipe_of(request, spec, settings)
    return [
        _sample(recipe, request, prompt, images)
        for prompt, images in zip(request.prompts, pictures, strict=True)
    ]


def recipe_of(request: InferenceRequest, spec: ModelSpec, settings: Settings) -> Recipe:
    """The model of a request with its LoRAs."""
    return Recipe(
        model=spec.id,
        weights=find_checkpoint(request.weights or settings.weights, settings),
        dtype=request.dtype,
        quantize=_ara(request.quantize, settings),
        quantize_te=request.quantize_te,
        trainer_version=request.trainer_version,
        offload=settings.how_offloaded,
        adapters=adapter_refs(request.loras or (), spec, settings),
        mode=request.mode,
        low_vram=request.low_vram,
        layer_offloading=request.layer_offloading,
        **{name: find_lora(lora, settings) for name in FIELDS if (lora := getattr(request, name))},
    )


def adapter_refs(
    loras: Sequence[Lora], spec: ModelSpec, settings: Settings
) -> tuple[AdapterRef, ...]:
    """LoRAs of a request as the engine takes them: for two experts at most one pair."""
    if not spec.lora.experts:
        if sided := [lora for lora in loras if lora.transformer]:
            raise InvalidInputError(
                f"{spec.id} has one transformer; leave `transformer` out for {sided[0].path}"
            )
        return tuple(
            AdapterRef(find_lora(x.path, settings), x.network_multiplier, "", x.allow_partial)
            for x in loras
        )
    return _pair(loras, spec, settings)


def _pair(loras: Sequence[Lora], spec: ModelSpec, settings: Settings) -> tuple[AdapterRef, ...]:
    by_side = {lora.transformer: lora for lora in loras}
    if None in by_side or len(by_side) < len(loras):
        raise InvalidInputError(
            f"{spec.id} has two experts: give each LoRA `transformer` high or low, one each at most"
        )
    if not loras:
        return ()
    if len({(lora.network_multiplier, lora.allow_partial) for lora in loras}) > 1:
        raise InvalidInputError(
            "the high and the low file of a pair have one network_multiplier, as in the trainer, "
            "and one allow_partial"
        )
    high, low = (
        find_lora(by_side[side].path, settings) if side in by_side else ""
        for side in ("high", "low")
    )
    return (AdapterRef(high, loras[0].network_multiplier, low, loras[0].allow_partial),)


def find_lora(name: str, settings: Settings) -> str:
    """The path of a LoRA in the server's folder; links and `tiny` are left as they are."""
    if name == TINY or is_remote(name):
        return name
    path = inside(settings.lora_folder, name)
    if path is None:
        raise AdapterError(
            f"there is no LoRA {name!r} in the server's LoRA folder; names are relative to it "
            "(WORKFLOWS_BASE_PATH), or give an https:// or hf:// address"
        )
    return str(path)


def find_checkpoint(name: str, settings: Settings) -> str:
    """Recipe.weights of a name: the words, or a path in the server's folder of checkpoints."""
    if name in ("huggingface", TINY):
        return name
    folder = settings.weights_folder
    path = inside(folder, name) if folder else None
    if path is None:
        raise CheckpointError(
            f"there are no weights {name!r}; allowed: huggingface, tiny, or a name in the server's "
            f"folder of checkpoints (AITK_WEIGHTS_PATH{'' if folder else ', which it has not'})"
        )
    return str(path)


def inside(folder: Path, name: str) -> Path | None:
    """The path of what a name calls in a folder; None if it leads out of it, by links as well."""
    try:
        path = (folder / name).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # not there, too long, a null byte, a loop of links
        return None
    return path if path.is_relative_to(folder.resolve()) else None


def _ara(quantize: str, settings: Settings) -> str:
    qtype, bar, adapter = quantize.partition("|")
    return f"{qtype}|{find_lora(adapter, settings)}" if bar else quantize


def _sample(
    recipe: Recipe, request: InferenceRequest, prompt: Prompt, images: Sequence[Any]
) -> SampleRequest:
    trigger = request.trigger_word if prompt.trigger_word is None else prompt.trigger_word
    return SampleRequest(
        recipe=recipe,
        prompt=prompt.prompt,
        negative_prompt=prompt.neg,
        width=prompt.width,
        height=prompt.height,
        steps=prompt.sample_steps,
        guidance_scale=prompt.guidance_scale,
        seed=prompt.seed,
        num_frames=prompt.num_frames,
        fps=prompt.fps,
        trigger_word=trigger,
        cached_text=request.cached_text,
        sampler=prompt.sampler,
        control_images=tuple(images),
        control_index=prompt.ctrl_idx,
        doubled_control=bool(prompt.ctrl_img) and get_model(recipe.model).control_images.doubled,
        switches=tuple(prompt.switches.items()),
    )
