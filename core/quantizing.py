"""Which parts of a model are quantized, and how: the trainer's rules, before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import InvalidInputError
from .qtypes import AS_TRAINED, NONE, check_qtype, split_quantize
from .requests import Recipe
from .specs import ModelSpec
from .versions import Profile

DEFAULT = "qfloat8"  # the trainer's, where a job says no qtype
OFFLOADED = "float8"  # what the trainer takes instead of it where it offloads layers


@dataclass(frozen=True)
class Quantization:
    """How the parts of a base are held.

    denoiser, encoders: qtypes of the denoisers and the text encoders, empty for full precision.
    recovery: the file of an accuracy recovery adapter, which only its layers are quantized for.
    keeps: patterns of the denoiser's modules that stay in full precision. restores: components
    whose layers multiply with restored weights, restores_first: the same, but for layers that
    replace others. merges: whether the trainer may merge adapters.
    """

    denoiser: str = ""
    encoders: str = ""
    recovery: str = ""
    keeps: tuple[str, ...] = ()
    restores: tuple[str, ...] = ()
    restores_first: tuple[str, ...] = ()
    merges: bool = True

    @property
    def text(self) -> str:
        """The denoiser's qtype as a Recipe names it."""
        return f"{self.denoiser}|{self.recovery}" if self.recovery else self.denoiser or NONE


def is_quantizing(recipe: Recipe) -> bool:
    """Whether the recipe asks for any part in fewer bits."""
    plain = recipe.quantize in (AS_TRAINED, NONE) and recipe.quantize_te in ("", NONE)
    return not plain


def resolve_quantization(spec: ModelSpec, recipe: Recipe, profile: Profile) -> Quantization:
    """What the recipe's `quantize`, `quantize_te` and `layer_offloading` come down to.

    Raises InvalidInputError for a qtype that the trainer's version does not have.
    Upstream: ostris/ai-toolkit@27a03a91 toolkit/config_modules.py::ModelConfig
    """
    qtype, file = split_quantize(recipe.quantize)
    chosen = qtype not in (AS_TRAINED, NONE)
    encoders = _encoders(spec, recipe, qtype if chosen else "", file)
    for name in filter(None, (qtype if chosen else "", encoders)):
        check_qtype(name, profile)
    rules, offloads = spec.quantizing, recipe.layer_offloading
    if file and not rules.recovers:
        raise InvalidInputError(
            f"{spec.id} takes no accuracy recovery adapter: the trainer ignores {file} there; "
            f"choose {qtype} without it"
        )
    merges = not (chosen or offloads)
    if not rules.denoiser:
        return Quantization(merges=merges)
    denoiser = _offloaded(qtype, offloads) if chosen else ""
    if denoiser == DEFAULT and rules.float8_with_assistant and recipe.assistant_lora_path:
        denoiser = OFFLOADED
    kept = not rules.keeps_since or profile.has(rules.keeps_since)
    return Quantization(
        denoiser=denoiser,
        encoders=_offloaded(encoders, offloads),
        recovery=file,
        keeps=rules.keeps if kept and denoiser else (),
        restores=rules.offloads if offloads else (),
        restores_first=rules.offloads_first if offloads else (),
        merges=merges,
    )


def qtypes_of_job(model: Mapping[str, Any], spec: ModelSpec) -> tuple[str, str]:
    """(quantize, quantize_te) of a Recipe, as a job's `model` section says them.

    Raises InvalidInputError for what no version of the trainer understands.
    """
    qtype = str(model.get("qtype") or DEFAULT)
    file = str(model.get("accuracy_recovery_adapter") or "")
    if "|" in qtype:
        qtype, _, file = qtype.partition("|")
    file = file if spec.quantizing.recovers else ""
    quantize = (f"{qtype}|{file}" if file else qtype) if model.get("quantize") else NONE
    named = qtype if spec.quantizing.encoders_by == "qtype" else model.get("qtype_te") or DEFAULT
    encoders = str(named) if model.get("quantize_te", model.get("quantize")) else NONE
    for text in (quantize, encoders):
        split_quantize(text)
    return quantize, encoders


def _encoders(spec: ModelSpec, recipe: Recipe, qtype: str, file: str) -> str:
    if recipe.quantize_te == NONE:
        return ""
    if recipe.quantize_te:
        return recipe.quantize_te
    # an adapter is made for one way to hold the denoiser; a job's text encoder has its own field
    return DEFAULT if file and spec.quantizing.encoders_by != "qtype" else qtype


def _offloaded(qtype: str, offloads: bool) -> str:
    return OFFLOADED if offloads and qtype == DEFAULT else qtype
