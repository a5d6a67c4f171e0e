"""A model's parts without their weights: what a LoRA can bind to, from the configurations alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..core.specs import ModelSpec
from ._loading import checkpoint_errors
from ._process import ONE_AT_A_TIME
from ._quiet import quiet_libraries
from ._text import encoder_config
from ._vendor import trainer_module


def skeleton(spec: ModelSpec, folder: Path) -> dict[str, Any]:
    """Component name -> module on the meta device, for the components that a LoRA can change.

    folder: in the hub's layout; weights need not be there. Raises CheckpointError if a
    configuration is missing or broken.
    """
    encoders = (name for name in spec.components if name.startswith("text_encoder"))
    trained = {*spec.lora.denoisers, *encoders}
    keep_rng = torch.random.fork_rng(devices=[])  # building a module may draw numbers
    with ONE_AT_A_TIME, quiet_libraries(), keep_rng, checkpoint_errors(spec, folder):
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        trained -= {name for name, _ in spec.elsewhere if not (folder / name).is_dir()}
        return {name: _empty(spec, folder / name, *index[name]) for name in sorted(trained)}


def _empty(spec: ModelSpec, folder: Path, library: str, class_name: str) -> Any:
    import diffusers
    import transformers
    from accelerate import init_empty_weights

    with init_empty_weights():
        if library != "transformers":
            home: Any = trainer_module(spec.network) if spec.network else diffusers
            module_class: Any = getattr(home, class_name)
            module = module_class.from_config(module_class.load_config(str(folder)))
            spec.adapt(folder.name, module)
            return module
        return getattr(transformers, class_name)(encoder_config(folder))
