"""Which model a job trained, and from which weights, by the job's `model` section."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import InvalidInputError
from ..core.specs import ModelSpec
from ..pipelines._registry import list_models

# How jobs of before `arch` name a model, and names with the same meaning.
FLAGS = {"is_xl": "sdxl", "is_flux": "flux", "is_lumina2": "lumina2"}
OTHER_FLAGS = ("is_v2", "is_v3", "is_pixart", "is_pixart_sigma", "is_auraflow", "is_ssd", "is_vega")
NAMES = {"sd1": "sd15", "sd_1.5": "sd15"}


def model_of(section: Mapping[str, Any]) -> ModelSpec:
    """The spec of the model that a job's `model` section names.

    Raises InvalidInputError, with what is known, for an architecture that no spec has.
    Upstream: ostris/ai-toolkit@27a03a91 toolkit/config_modules.py::ModelConfig
    """
    arch, name = _arch(section), str(section.get("name_or_path") or "").lower()
    base = arch.partition(":")[0]
    fitting = [spec for spec in list_models() if spec.arch.partition(":")[0] == base]
    if not fitting:
        known = ", ".join(sorted({spec.arch for spec in list_models()}))
        raise InvalidInputError(
            f"the job's model.arch is {arch!r}, which this version does not render; it has: {known}"
        )
    if base == "flux":  # Flex.1's arch is FLUX.1's by another name
        fitting += [spec for spec in list_models() if spec.arch == "flex1"]
    if base == "krea2":  # the trainer goes by the setting, whatever its form calls the variant
        task = "edit" if (section.get("model_kwargs") or {}).get("edit") else "text-to-image"
        fitting = [spec for spec in fitting if spec.task == task]
    return max(fitting, key=lambda spec: _likeness(spec, arch, name))


def weights_of(section: Mapping[str, Any], spec: ModelSpec) -> str:
    """Where the job's base weights are: `huggingface`, `tiny`, or a path on this machine.

    Raises InvalidInputError if they are neither the model's own repository nor a path that exists.
    """
    name = str(section.get("name_or_path") or "")
    if name.lower() == spec.repo_id.lower():
        return "huggingface"
    if name == "tiny" or (name and Path(name).exists()):
        return name
    raise InvalidInputError(
        f"the job's base model is {name!r}, which is neither {spec.repo_id} nor a path on this "
        "machine; say with --weights (or the node's weights) where it is"
    )


def _arch(section: Mapping[str, Any]) -> str:
    if arch := section.get("arch"):
        return NAMES.get(str(arch), str(arch))
    for flag in OTHER_FLAGS:
        if section.get(flag):
            raise InvalidInputError(f"the job's model has {flag}, which this version cannot render")
    named = [arch for flag, arch in FLAGS.items() if section.get(flag)]
    return named[0] if named else "sd15"


def _likeness(spec: ModelSpec, arch: str, name: str) -> tuple[bool, ...]:
    # what tells ids of one architecture apart, the strongest first
    return (
        spec.repo_id.lower() == name,
        spec.arch == arch,
        spec.repo_id.partition("/")[2].lower() in name,
        spec.id == arch,
        ":" not in spec.arch,
    )
