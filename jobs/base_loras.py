"""The LoRAs under the trained one that a job's `model` section names, and where they are now."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import AdapterError
from ..core.specs import ModelSpec
from .fields import Problem

FIELDS = ("assistant_lora_path", "inference_lora_path", "lora_path")


def base_loras_of(section: Mapping[str, Any], spec: ModelSpec, folder: Path) -> dict[str, str]:
    """Those that the model takes and that are found, as fields of Recipe.

    folder: the job's, where a file of the same name stands in for one of another machine.
    """
    given = {field: section.get(field) for field in spec.base_loras.fields}
    found = {field: _find(str(path), folder) for field, path in given.items() if path}
    return {field: path for field, path in found.items() if path}


def base_lora_problems(
    section: Mapping[str, Any], spec: ModelSpec, folder: Path
) -> Iterator[Problem]:
    """Those that the job's samples are drawn without."""
    found = base_loras_of(section, spec, folder)
    for field in FIELDS:
        path = section.get(field)
        if not path or field in found:
            continue
        if field in spec.base_loras.fields:
            why = f"no such file on this machine; put it into {folder}"
            yield Problem(f"model.{field}", path, why)
        else:
            why = f"the trainer uses none for {spec.arch}"
            yield Problem(f"model.{field}", path, why, pixels=field != "lora_path")


def _find(path: str, folder: Path) -> str:
    from ..engine.training_adapters import locate_base_lora

    name = path.replace("\\", "/").rpartition("/")[2]
    for place in (path, str(folder / name)):
        if os.path.exists(place):
            return place
    try:
        return locate_base_lora(path)
    except AdapterError:
        return ""
