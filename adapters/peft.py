"""Alphas that lie beside the weights: peft's adapter_config.json, diffusers' metadata."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import AdapterError

CONFIG = "adapter_config.json"
METADATA = "lora_adapter_metadata"  # diffusers: {"transformer.lora_alpha": 16, ...}
PREFIX = "base_model.model."
PLAIN = re.compile(r"\^?[\w.-]*")  # names of modules; others are regular expressions
# Ways to start a training that change the base as well, by which the adapter alone is not it.
OTHER_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
MOST = 1e9  # of an alpha or a rank; the comparison fails for NaN as well


def read_config(file: Path) -> dict[str, Any] | None:
    """The peft configuration beside a file called as peft calls it, if there is one.

    Raises AdapterError for one that is no LoRA's or cannot be read.
    """
    path = file.with_name(CONFIG)
    if not path.is_file() or not file.name.startswith("adapter_model"):
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} could not be read: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type", "LORA") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise AdapterError(f"{path} is of {found}; only LORA is read")
    _check(path, config)
    return config


def _check(path: Path, config: Mapping[str, Any]) -> None:
    for name, value in config.items():
        if name.endswith(("rank_pattern", "alpha_pattern")) and isinstance(value, Mapping):
            for key in value:
                if not PLAIN.fullmatch(key):
                    raise AdapterError(
                        f"{path} has the regular expression {key!r} in {name}; only names of "
                        "modules are read: save it with the names written out"
                    )
        if name.endswith("init_lora_weights") and str(value).startswith(OTHER_BASES):
            raise AdapterError(
                f"{path} has {name} {value!r}, for which peft changed the base as well; "
                "convert the adapter to a plain LoRA"
            )


def alphas(
    file: Path, config: Mapping[str, Any] | None, metadata: Mapping[str, str]
) -> Callable[[str], float | None]:
    """The alpha of a layer by its name, as the configuration or metadata gives it, or None.

    rsLoRA's is multiplied so that alpha / rank comes out as its alpha / sqrt(rank).
    """
    if config is not None:
        return lambda name: _alpha(config, name.removeprefix(PREFIX))
    try:
        stored = json.loads(metadata.get(METADATA, "{}"))
    except (ValueError, RecursionError):
        stored = {}
    if not isinstance(stored, dict):
        return lambda _: None
    _check(file, stored)
    if "lora_alpha" in stored:  # of a model that was saved by itself, without a component
        return lambda name: _alpha(stored, name)

    def of_component(name: str) -> float | None:
        component, _, path = name.partition(".")
        own = {
            key.partition(".")[2]: value
            for key, value in stored.items()
            if key.partition(".")[0] == component
        }
        return _alpha(own, path) if own else None

    return of_component


def _alpha(config: Mapping[str, Any], path: str) -> float | None:
    rank = _for_layer(config.get("rank_pattern"), path, config.get("r"))
    alpha = _for_layer(config.get("alpha_pattern"), path, config.get("lora_alpha"))
    if alpha is None or not config.get("use_rslora"):
        return alpha
    return alpha * math.sqrt(rank) if rank and rank > 0 else None


def _for_layer(pattern: object, path: str, default: object) -> float | None:
    # peft: the first key that is the end of the layer's path decides; ^ ties it to the start
    if isinstance(pattern, Mapping):
        for key, value in pattern.items():
            if f"^{path}" == key or f".{path}".endswith(f".{key}"):
                default = value
                break
    number = isinstance(default, int | float) and not isinstance(default, bool)
    return float(default) if number and abs(default) < MOST else None  # type: ignore[arg-type]
