"""The LoRAs under the trained one that a job's `model` section names.

`assistant_lora_path` is merged into the weights, and taken away again while the model samples,
which leaves what both roundings did. `inference_lora_path` acts while it samples. `lora_path` is
fused for good. They are part of the base: another one is another base.

Upstream: ostris/ai-toolkit@27a03a91 toolkit/stable_diffusion_model.py::StableDiffusion,
extensions_built_in/diffusion_models/z_image/z_image.py::ZImageModel.load_training_adapter
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..adapters.bind import BoundLayer, bind
from ..adapters.fuse import fuse
from ..adapters.lora import LiveLora, LoraLayer, merge
from ..adapters.read import Adapter
from ..core.errors import AdapterError, InvalidInputError
from ..core.requests import Recipe
from ..core.specs import ModelSpec
from ..pipelines._loading import LoadedModel
from ..pipelines._registry import list_models
from ..quantization.module import PackedLayer
from .downloads import is_remote
from .weights import tiny_base_lora

ASSISTANT, INFERENCE, FUSED = FIELDS = (
    "assistant_lora_path", "inference_lora_path", "lora_path",
)  # fmt: skip
LIVE = {ASSISTANT: -1.0, INFERENCE: 1.0}  # the multiplier while sampling
FILE = "pytorch_lora_weights.safetensors"  # of folders and repositories without a file's name
ON_HUB = re.compile(r"([\w-][\w.-]*/[\w.-]+?)(?:/((?:[\w.-]+/)*[\w.-]+\.safetensors))?")


@dataclass(frozen=True)
class BaseLora:
    """A LoRA that the base is made with. field: of Recipe, that names it."""

    field: str
    adapter: Adapter

    @property
    def key(self) -> tuple[str, str]:
        """Equal for those that make the same base."""
        return self.field, self.adapter.digest


@dataclass(frozen=True)
class Under:
    """A layer that acts live, under all adapters of a request."""

    bound: BoundLayer
    layer: LoraLayer
    multiplier: float


def check_base_loras(spec: ModelSpec, recipe: Recipe) -> dict[str, str]:
    """The recipe's fields that name such LoRAs, with their paths.

    Raises InvalidInputError for those that the trainer does not take, or not together.
    """
    given = {field: path for field in FIELDS if (path := getattr(recipe, field).strip())}
    for field, path in given.items():
        if field not in spec.base_loras.fields:
            takers = [other.id for other in list_models() if field in other.base_loras.fields]
            raise InvalidInputError(
                f"{spec.id} takes no {field}, and {path!r} was given: the trainer does not use "
                f"one there; models with one: {', '.join(takers)}"
            )
    if len(given) > 1:
        raise InvalidInputError(
            f"{' and '.join(given)} are given; the trainer takes one of them at a time"
        )
    if ASSISTANT in given and "|" in recipe.quantize:
        raise InvalidInputError(
            f"{ASSISTANT} and an accuracy recovery adapter ({recipe.quantize}) are given; the "
            "trainer takes one of them at a time"
        )
    return given


def open_base_loras(
    spec: ModelSpec, recipe: Recipe, open_adapter: Callable[[str], Adapter]
) -> tuple[BaseLora, ...]:
    """The recipe's LoRAs that the base is made with; none or one, as in the trainer.

    open_adapter: gives the adapter at a path. Raises InvalidInputError where the trainer takes
    none, and AdapterError for a file that it fails on.
    """
    given = check_base_loras(spec, recipe)
    loras = [BaseLora(f, open_adapter(_file(spec, recipe, path))) for f, path in given.items()]
    for lora in loras:
        _check_file(spec, lora)
    return tuple(loras)


def locate_base_lora(path: str) -> str:
    """What is on this machine, or the address of what a repository's name stands for.

    Raises AdapterError if it is neither.
    """
    local = Path(path).expanduser()
    if os.path.isfile(local / FILE):
        return str(local / FILE)
    if path == "tiny" or is_remote(path) or os.path.exists(local):
        return path
    found = ON_HUB.fullmatch(path)
    if not found or (path.count("/") == 1 and path.endswith(".safetensors")):
        raise AdapterError(
            f"there is no LoRA at {path}; give a file, a folder, an address, or as the trainer "
            "takes them owner/repository/file.safetensors"
        )
    return f"hf://{found[1]}/{found[2] or FILE}"


def merge_base_loras(model: LoadedModel, loras: Sequence[BaseLora]) -> list[Under]:
    """Merges what is to be merged. Returns what is to act live, once the model is quantized."""
    under: list[Under] = []
    for lora in loras:
        bound = bind(lora.adapter, model.spec, model.modules)
        _check_places(model.spec, lora, bound)
        covered = [one for one in bound if _is_covered(model.spec, lora, one)]
        if lora.field in LIVE:
            under += [Under(b, _as_network(b, model), LIVE[lora.field]) for b in covered]
        if lora.field != INFERENCE:
            _merge(model, bound if model.spec.base_loras.by_peft else covered)
    return under


def attach_base_loras(model: LoadedModel, under: Sequence[Under]) -> None:
    """Has the layers act from now on, in the model's precision.

    The trainer's own networks hold the modules as they were before quantization: those that it
    replaced are out of their reach, and nothing is taken away there.
    """
    by_peft = model.spec.base_loras.by_peft
    if under and not by_peft:
        _restore_weights(model)
    for one in under:
        component, _, path = one.bound.path.partition(".")
        module = model.modules[component].get_submodule(path)
        if by_peft or module is one.bound.module:
            live = LiveLora(one.layer, module, one.multiplier, model.dtype)
            live.of_base = True
            live.install()


def _restore_weights(model: LoadedModel) -> None:
    # the network, which is on all layers, has them do what they did before the trainer's own
    # qtypes changed them: multiply with a weight that is restored for it
    for name in model.spec.lora.denoisers:
        for module in model.modules[name].modules():
            if isinstance(module, PackedLayer) and module.scheme.own:
                module.restores = True


def _file(spec: ModelSpec, recipe: Recipe, path: str) -> str:
    if path == "tiny" and recipe.weights == "tiny":
        return str(tiny_base_lora(spec))
    return locate_base_lora(path)


def _check_file(spec: ModelSpec, lora: BaseLora) -> None:
    layers, path = lora.adapter.layers, lora.adapter.path
    if strange := [layer for layer in layers if type(layer) is not LoraLayer]:
        raise AdapterError(
            f"{path} holds {strange[0].kind} layers ({strange[0].name}); {lora.field} is a plain "
            "LoRA in the trainer"
        )
    if lora.field == FUSED:
        return
    first = spec.base_loras.layer
    if first and first not in {layer.name for layer in layers}:
        raise AdapterError(
            f"{path} has no layer {first}, by which the trainer reads an {lora.field} of "
            f"{spec.id}; its first one is {layers[0].name}"
        )
    if len(ranks := {layer.rank for layer in layers if layer.rank is not None}) > 1:
        raise AdapterError(
            f"{path} has layers of the ranks {', '.join(map(str, sorted(ranks)))}; the "
            f"trainer makes them all one in an {lora.field}, which is not done here"
        )


def _check_places(spec: ModelSpec, lora: BaseLora, bound: Sequence[BoundLayer]) -> None:
    if spec.base_loras.fields == (FUSED,):
        return
    for one in bound:
        if one.path.partition(".")[0] not in spec.lora.denoisers:
            raise AdapterError(
                f"{lora.adapter.path} changes {one.path}; an {lora.field} of {spec.id} can change "
                "the transformer only"
            )


def _is_covered(spec: ModelSpec, lora: BaseLora, bound: BoundLayer) -> bool:
    # a file of FLUX says by this alpha that it is of the whole network
    layers = lora.adapter.layers
    if any(x.name == "transformer.proj_out" and x.alpha is not None for x in layers):
        return True
    return spec.base_loras.blocks in bound.layer.name


def _as_network(bound: BoundLayer, model: LoadedModel) -> LoraLayer:
    # as the trainer's network holds it: in the model's precision, every alpha its rank
    layer = bound.layer
    assert isinstance(layer, LoraLayer)
    down, up = (part.to(model.dtype) for part in (layer.down, layer.up))
    return replace(layer, down=down, up=up, alpha=None)


def _merge(model: LoadedModel, bound: Sequence[BoundLayer]) -> None:
    for one in bound:
        weight = one.module.get_parameter("weight")
        if model.spec.base_loras.by_peft:
            assert isinstance(one.layer, LoraLayer)
            fuse(one.layer, weight, model.device)
        else:
            merge(_as_network(one, model), weight.to(model.device), 1.0, weight)
