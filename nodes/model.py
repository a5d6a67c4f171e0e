"""The node that chooses a model."""

from __future__ import annotations

from typing import Any

from ..core.errors import AitkError
from ..core.qtypes import NAMES, NONE
from ..core.requests import DTYPES, LOW_VRAM, OFFLOAD, QUANTIZE, Recipe
from ..core.versions import TRAINER_VERSIONS
from ..pipelines._registry import get_model, list_models
from . import _comfy, _memory
from ._errors import as_listed, plain_errors

AS_QUANTIZE = "as quantize"


class LoadAIToolkitModel:
    """A recipe: which model, which weights, which precision. Nothing is loaded before sampling."""

    CATEGORY = _comfy.CATEGORY
    DESCRIPTION = (
        "Chooses a model to render with, exactly as ostris/ai-toolkit does. Weights are read when "
        "the first sample is rendered and stay in memory for the next."
    )
    RETURN_TYPES = ("AITK_MODEL",)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("The recipe; connect it to a LoRA or to the sampler.",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": (
                    [spec.id for spec in list_models()],
                    {"default": "flux", "tooltip": "The model the LoRA was trained on."},
                ),
                "weights": (
                    _comfy.list_weights(),
                    {
                        "tooltip": "huggingface downloads what the trainer uses; tiny is a random "
                        "toy model for trying a workflow; the rest is in your model folders."
                    },
                ),
            },
            "optional": {
                "dtype": (
                    list(DTYPES),
                    {"default": "bf16", "tooltip": "train.dtype of the job; usually bf16."},
                ),
                "quantize": (
                    list(QUANTIZE),
                    {
                        "tooltip": "as_trained follows a job's settings; without one it is none. A "
                        "qtype is for the text encoder, too: choose the job's, usually qfloat8."
                    },
                ),
                "trainer_version": (
                    list(TRAINER_VERSIONS),
                    {
                        "tooltip": "How the trainer sampled at that version. auto reads it from "
                        "the LoRA file."
                    },
                ),
                "offload": (
                    list(OFFLOAD),
                    {
                        "tooltip": "Where weights wait. auto keeps all on the GPU if they fit, "
                        "else only the part that works. The picture does not change."
                    },
                ),
                "quantize_te": (
                    [AS_QUANTIZE, NONE, *NAMES],
                    {
                        "advanced": True,
                        "tooltip": "The job's qtype_te, where it is another than the model's.",
                    },
                ),
                "layer_offloading": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "advanced": True,
                        "tooltip": "On if the job had layer_offloading: its quantized layers "
                        "compute otherwise.",
                    },
                ),
                "low_vram": (
                    list(LOW_VRAM),
                    {
                        "advanced": True,
                        "tooltip": "The job's low_vram, with which some VAEs work in tiles. auto "
                        "is as in jobs of the trainer's own form.",
                    },
                ),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, model: str, weights: str) -> bool | str:
        try:
            spec = get_model(model)
            if weights not in _comfy.list_weights():
                return f"weights {weights!r} are not in the model folders; refresh and choose again"
            if weights not in ("huggingface", "tiny"):
                from ..engine.weights import check_local

                check_local(spec, _comfy.find_weights(weights))
        except AitkError as error:
            return as_listed(str(error))
        return True

    @plain_errors()
    def load(
        self,
        model: str,
        weights: str,
        dtype: str = "bf16",
        quantize: str = "as_trained",
        trainer_version: str = "auto",
        offload: str = "auto",
        quantize_te: str = AS_QUANTIZE,
        layer_offloading: bool = False,
        low_vram: str = "auto",
    ) -> tuple[Recipe]:
        recipe = Recipe(
            model=model,
            weights=_comfy.find_weights(weights),
            dtype=dtype,
            quantize=quantize,
            trainer_version=trainer_version,
            offload=_memory.offload_as_started(offload),
            quantize_te="" if quantize_te == AS_QUANTIZE else quantize_te,
            layer_offloading=layer_offloading,
            low_vram=low_vram,
        )
        return (_memory.keep_while_used(_comfy.engine(), recipe),)
