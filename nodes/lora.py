"""The node that puts a LoRA on a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..core.errors import InvalidInputError
from ..core.requests import MODES, AdapterRef, Recipe
from ..pipelines._registry import get_model
from . import _comfy, _memory
from ._errors import plain_errors

NONE = "none"
TRAINED = "trained"
ROLES = {
    TRAINED: "",
    "assistant": "assistant_lora_path",
    "inference": "inference_lora_path",
    "base": "lora_path",
}
TINY = "tiny"


class ApplyAIToolkitLoRA:
    """The recipe with one more LoRA, and what is in the file."""

    CATEGORY = _comfy.CATEGORY
    DESCRIPTION = (
        "Puts a LoRA trained with ostris/ai-toolkit on the model, with the trainer's arithmetic. "
        "A file that does not fit the model completely is refused."
    )
    RETURN_TYPES = ("AITK_MODEL", "STRING")
    RETURN_NAMES = ("model", "report")
    OUTPUT_TOOLTIPS = ("The recipe with this LoRA on top.", "What the file holds.")
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        loras = _comfy.list_loras()
        return {
            "hidden": {"unique_id": "UNIQUE_ID"},
            "required": {
                "model": ("AITK_MODEL", {"tooltip": "The recipe to put the LoRA on."}),
                "lora_name": (
                    [*loras, TINY],
                    {
                        "tooltip": "A .safetensors file of ComfyUI's loras folder. tiny is a "
                        "random LoRA for the tiny weights, for trying a workflow."
                    },
                ),
                "multiplier": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": -100.0,
                        "max": 100.0,
                        "step": 0.01,
                        "tooltip": "The trainer's network_multiplier; its samples use 1.0. "
                        "--m in the prompt overrides it.",
                    },
                ),
            },
            "optional": {
                "lora_name_low": (
                    [NONE, *loras, TINY],
                    {
                        "tooltip": "Only for models with two experts: the low-noise file; "
                        "lora_name is then the high-noise one."
                    },
                ),
                "mode": (
                    list(MODES),
                    {
                        "tooltip": "as_trainer merges the LoRA into the weights, as the trainer "
                        "does for a sample list with one multiplier, and computes it beside the "
                        "layers where the trainer does: for a DoRA and on quantized weights. live "
                        "is what the trainer does for several multipliers."
                    },
                ),
                "allow_partial": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Leave out layers that do not fit the model, instead of "
                        "refusing the file. The report names them.",
                    },
                ),
                "url": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Instead of lora_name: https:// or hf://owner/repo/file. "
                        "Fetched once into the loras folder. Tokens come from the environment, "
                        "never from here.",
                    },
                ),
                "role": (
                    list(ROLES),
                    {
                        "tooltip": "What the file was in the job. trained: its result. assistant: "
                        "model.assistant_lora_path (FLUX, Z-Image, Krea 2), merged into the base "
                        "and taken away while sampling. inference: model.inference_lora_path "
                        "(FLUX). base: model.lora_path (SD, SDXL, FLUX), fused into the base. "
                        "Those three take no multiplier."
                    },
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(
        cls, multiplier: float | None, url: str | None = "", role: str = TRAINED
    ) -> bool | str:
        # None is the value of another node, which is not known yet
        if role not in ROLES:
            return f"role={role!r}; it must be one of {', '.join(ROLES)}"
        if role != TRAINED and multiplier != 1:
            return f"multiplier={multiplier}; with the role {role} it is 1, as in the trainer"
        if multiplier is not None and not abs(multiplier) <= 100:
            return f"multiplier={multiplier}; it must be a number from -100 to 100"
        return _comfy.link_problem(url or "") or True

    @classmethod
    def IS_CHANGED(
        cls, lora_name: str, lora_name_low: str = NONE, url: str | None = "", **_: Any
    ) -> tuple[Any, ...]:
        # a training that goes on writes the same file again
        names = [(url or "").strip() or lora_name, lora_name_low]
        files = [Path(_comfy.find_lora(name)) for name in names if _is_file(name)]
        return (*names, *((stat.st_mtime_ns, stat.st_size) for stat in map(Path.stat, files)))

    @plain_errors()
    def apply(
        self,
        model: Recipe,
        lora_name: str,
        multiplier: float,
        lora_name_low: str = NONE,
        mode: str = "as_trainer",
        allow_partial: bool = False,
        url: str = "",
        role: str = TRAINED,
        unique_id: str = "",
    ) -> dict[str, Any]:
        from ..adapters.report import describe

        name, asked_by = url.strip() or lora_name, "url" if url.strip() else "lora_name"
        low = _comfy.find_lora(lora_name_low) if _is_file(lora_name_low) else lora_name_low
        low = "" if low == NONE else low
        path = _comfy.find_lora(name) if _is_file(name) else name
        ref = AdapterRef(path, multiplier, low, allow_partial)
        called = {path: f"{asked_by} {name}"}
        called |= {low: f"lora_name_low {lora_name_low}"} if low else {}
        with plain_errors(called, asked_by):
            fits = _comfy.engine().fit(model, ref, _comfy.status_reporter(unique_id))
        names = [name, lora_name_low]
        texts = [
            describe(adapter, name, binding)
            for (adapter, binding), name in zip(fits, names, strict=False)
        ]
        report = "\n\n".join(texts)
        if role == TRAINED:
            recipe = model.with_adapter(ref, mode)
        else:
            recipe = _on_base(model, ROLES[role], path)
        recipe = _memory.keep_while_used(_comfy.engine(), recipe)
        return {"ui": {"text": [report]}, "result": (recipe, report)}


def _on_base(model: Recipe, field: str, path: str) -> Recipe:
    from ..engine.training_adapters import check_base_loras

    if before := getattr(model, field):
        raise InvalidInputError(f"{path} is given as {field}, but {before} is it already")
    recipe = replace(model, **{field: path})
    check_base_loras(get_model(recipe.model), recipe)
    return recipe


def _is_file(name: str) -> bool:
    return name not in (TINY, NONE) and not _comfy.is_link(name)
