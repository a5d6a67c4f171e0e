"""Every kind of layer, live and merged, against what the trainer's own classes made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import layer_goldens
import pytest
import torch
from arithmetic import layer_arithmetic
from layer_goldens import Results, results
from rows import PROFILES
from trainer_layers import digest, layers, root_class

from ai_toolkit_inference import get_model
from ai_toolkit_inference.adapters.apply import AdapterState, Applied
from ai_toolkit_inference.adapters.bind import BoundLayer, bind
from ai_toolkit_inference.adapters.read import read_adapter
from ai_toolkit_inference.core.errors import AdapterError
from ai_toolkit_inference.core.versions import get_profile
from ai_toolkit_inference.quantization.base import Part, quantize_part

CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
QTYPES = ("qfloat8", "float8")
FP32_ELSEWHERE = 1e-6  # of the largest value, where kernels round otherwise


def layout() -> Any:
    """A model whose denoiser is the small layers."""
    spec = get_model("flux")
    return replace(spec, lora=replace(spec.lora, prefixes=(("transformer", "root"),), original=""))


@cache
def same_kernels(version: str, dtype: str) -> bool:
    stored = results(version).manifest["arithmetic"][dtype]
    return layer_arithmetic(DTYPES[dtype]) == stored


def build(dtype: torch.dtype, linear_only: bool = False) -> torch.nn.Module:
    root = root_class()(linear_only).requires_grad_(False)
    root.load_state_dict({name: layer_goldens.base()[name] for name in root.state_dict()})
    return root.to(dtype)


def bound(root: torch.nn.Module, case: str, version: str) -> tuple[BoundLayer, ...]:
    adapter = read_adapter(layer_goldens.adapter_file(case, version))
    return bind(adapter, layout(), {"root": root}, allow_partial=not hasattr(root, "skip"))


def outputs(root: torch.nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What every layer answers to its input."""
    answers = {}
    for name, layer in layers(root).items():
        x = layer_goldens.base()[f"{name}.input"]
        answers[name] = layer(x.to(dtype) if x.is_floating_point() else x)
    return answers


def differences(version: str, group: str, got: dict[str, torch.Tensor]) -> list[str]:
    """Where `got` is not the trainer's, with numbers; of those the trainer gave only."""
    stored, dtype = results(version), "fp32" if "/fp32/" in group else "bf16"
    found = []
    for name, wanted in stored.layers(group).items():
        if digest(got[name]) != wanted:
            found += _difference(stored, wanted, f"{group}/{name}", got[name], dtype)
    return found


def _difference(
    stored: Results, wanted: str, name: str, got: torch.Tensor, dtype: str
) -> Iterator[str]:
    tensor = stored.tensors.get(wanted)
    if same_kernels(stored.version, dtype):
        off = "" if tensor is None else f" by {(got.float() - tensor.float()).abs().max():.3g}"
        yield f"{name} differs{off}"
    elif tensor is not None:
        off = float((got - tensor).abs().max() / tensor.abs().max())
        if off > FP32_ELSEWHERE:
            yield f"{name} is {off:.3g} of its largest value off"


def skip_other_kernels(version: str, base: str) -> None:
    if base != "fp32" and not same_kernels(version, "bf16"):
        pytest.skip("this processor's bf16 kernels round otherwise than those of the goldens")


def every(kind: str) -> list[tuple[str, str, str]]:
    """(version, case or stack, base) of all that was measured on plain or quantized layers."""
    found = {}
    for version in PROFILES:
        for group in results(version).groups():
            case, base, _, _ = group.split("/")
            what = "quantized" if base in QTYPES else "stack" if "+" in case else "case"
            if what == kind:
                found[(version, case, base)] = None
    return list(found)


def multipliers(version: str, case: str, base: str, way: str) -> list[str]:
    start = f"{case}/{base}/{way}/"
    found = [name for name in results(version).groups() if name.startswith(start)]
    return [name.removeprefix(start) for name in found]


@pytest.mark.parametrize(("version", "case", "base"), every("case"))
def test_live_layers_answer_as_the_trainers(version: str, case: str, base: str) -> None:
    skip_other_kernels(version, base)
    root = build(DTYPES[base])
    layers, state, found = bound(root, case, version), AdapterState(CPU), []
    given = multipliers(version, case, base, "live")
    assert len(given) == 4
    for multiplier in given:
        state.switch([Applied("a", layers, float(multiplier), True, get_profile(version))])
        got = outputs(root, DTYPES[base])
        found += differences(version, f"{case}/{base}/live/{multiplier}", got)
    assert not found


@pytest.mark.parametrize(("version", "case", "base"), every("case"))
def test_merged_weights_are_the_trainers(version: str, case: str, base: str) -> None:
    skip_other_kernels(version, base)
    root, loaded = build(DTYPES[base]), build(DTYPES[base])
    layers, state, found = bound(root, case, version), AdapterState(CPU), []
    if not multipliers(version, case, base, "merged"):  # the trainer's merging did nothing
        with pytest.raises(AdapterError, match="cannot be merged, and the trainer never does"):
            state.switch([Applied("a", layers, 1.0, False)])
    for multiplier in multipliers(version, case, base, "merged"):
        state.switch([Applied("a", layers, float(multiplier), False)])
        group, got = f"{case}/{base}/merged/{multiplier}", root.state_dict()
        found += differences(version, group, got)
        for name in got.keys() - results(version).layers(group).keys():
            assert torch.equal(got[name], loaded.state_dict()[name])  # the trainer left it
    assert not found


def lost_layers(version: str, stack: str, base: str, way: str) -> list[str]:
    """Layers where the trainer's outermost LoKr never asks the adapter below it."""
    *inner, outer = stack.split("+")
    (given,) = multipliers(version, stack, base, way)
    alone = results(version).layers(f"{outer}/{base}/live/{given.split(',')[-1]}")
    below = [results(version).layers(f"{case}/{base}/live/1.0") for case in inner]
    together = results(version).layers(f"{stack}/{base}/{way}/{given}")
    return [
        name
        for name, value in together.items()
        if value == alone.get(name) and any(name in names for names in below)
    ]


def stacked(
    root: torch.nn.Module, version: str, stack: str, base: str, way: str, without: Sequence[str]
) -> list[Applied]:
    (given,) = multipliers(version, stack, base, way)
    adapters = []
    merged = {"live": 0, "mixed_output": 1}.get(way, 9)
    for index, (case, multiplier) in enumerate(
        zip(stack.split("+"), given.split(","), strict=True)
    ):
        layers = bound(root, case, version)
        live = index >= merged or not layers[0].layer.can_merge
        kept = tuple(layer for layer in layers if layer.path.removeprefix("root.") not in without)
        adapters.append(Applied(case, kept, float(multiplier), live, get_profile(version)))
    return adapters


WAYS = ("live", "merged", "merged_output", "mixed_output")
STACKS = [(*stack, way) for stack in every("stack") for way in WAYS if multipliers(*stack, way)]


@pytest.mark.parametrize(("version", "stack", "base", "way"), STACKS)
def test_stacks_are_the_trainers(version: str, stack: str, base: str, way: str) -> None:
    skip_other_kernels(version, base)
    root, state = build(DTYPES[base]), AdapterState(CPU)
    lost = lost_layers(version, stack, base, way) if way in ("live", "mixed_output") else []
    if lost:
        with pytest.raises(AdapterError, match="the adapter below it would be lost"):
            state.switch(stacked(root, version, stack, base, way, ()))
    (given,) = multipliers(version, stack, base, way)
    state.switch(stacked(root, version, stack, base, way, lost))
    got = root.state_dict() if way == "merged" else outputs(root, DTYPES[base])
    found = differences(version, f"{stack}/{base}/{way}/{given}", got)
    assert not [text for text in found if not any(f"/{name} " in text for name in lost)]


def test_only_lokr_loses_what_is_below_it() -> None:
    lost = {
        (version, stack): lost_layers(version, stack, base, "live")
        for version, stack, base in every("stack")
    }
    names = {key for key, found in lost.items() if found}
    old, new = PROFILES
    assert names == {
        (old, "lora+lokr"), (old, "lokr+lokr8"), (old, "dora+lokr"),
        (new, "lora+lokr"), (new, "lokr+lokr8"),
    }  # fmt: skip
    assert set(lost[(new, "lora+lokr")]) == {"conv_a", "down", "skip"}


class Packed(torch.Tensor):
    """A weight that has to be asked for its values, as those of quantization libraries."""

    def dequantize(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


class PackedLinear(torch.nn.Linear):
    """Computes as layers quantized by optimum-quanto (the bias by itself) or by torchao."""

    split = False

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        weight = self.weight
        if isinstance(weight, Packed):  # an adapter may have put a plain one in its place
            weight = weight.dequantize()
        if self.split and self.bias is not None:
            return torch.nn.functional.linear(input, weight) + self.bias
        return torch.nn.functional.linear(input, weight, self.bias)


def packed(version: str, qtype: str) -> torch.nn.Module:
    """The linear layers with the trainer's quantized weights, in modules that stand in."""
    root = build(torch.bfloat16, linear_only=True)
    stored = results(version)
    for name, value in stored.layers(f"base/{qtype}/weight/1.0").items():
        module = root.get_submodule(name)
        module.__class__, module.split = PackedLinear, qtype == "qfloat8"
        weight = stored.tensors[value].as_subclass(Packed)
        module._parameters["weight"] = torch.nn.Parameter(weight, requires_grad=False)
    return root


def quantized(version: str, qtype: str) -> torch.nn.Module:
    """The linear layers, quantized by the library itself as the trainer calls it."""
    root = build(torch.bfloat16, linear_only=True)
    if qtype == "qfloat8":
        quanto = pytest.importorskip("optimum.quanto")
        quanto.quantize(root, weights=quanto.qfloat8)
        quanto.freeze(root)
        return root
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(root, torchao.Float8WeightOnlyConfig())
    return root


def held(version: str, qtype: str) -> torch.nn.Module:
    """The linear layers, quantized as the engine does it."""
    root = build(torch.bfloat16, linear_only=True)
    quantize_part(root, Part(version, qtype), CPU)
    return root


# optimum-quanto quantizes a weight with its .diff again, which what stands in for it does not
PACKED = [
    (*case, make)
    for case in every("quantized")
    for make in (packed, quantized, held)
    if make is not packed or case[2] != "qfloat8" or not case[1].startswith("diff")
]


@pytest.mark.parametrize(("version", "case", "base", "make"), PACKED)
def test_live_layers_on_quantized_weights(version: str, case: str, base: str, make: Any) -> None:
    skip_other_kernels(version, "bf16")
    root = make(version, base)
    got = outputs(root, torch.bfloat16)
    found = differences(version, f"base/{base}/live/1.0", got)
    if found and make is quantized:
        pytest.skip(f"this version of the library quantizes otherwise than the trainer's: {found}")
    assert not found
    layers, state = bound(root, case, version), AdapterState(CPU)
    for multiplier in multipliers(version, case, base, "live"):
        state.switch([Applied("a", layers, float(multiplier), True, get_profile(version))])
        got = outputs(root, torch.bfloat16)
        found += differences(version, f"{case}/{base}/live/{multiplier}", got)
    assert not found


def test_everything_the_trainer_has_was_measured() -> None:
    old, new = (results(version).manifest["cases"].keys() for version in PROFILES)
    assert old < new
    assert {case for case in new - old} == {"diff", "diff_kohya", "diff_lokr"}
    for version in PROFILES:
        cases = {case for found, case, _ in every("case") if found == version}
        assert cases == results(version).manifest["cases"].keys()
