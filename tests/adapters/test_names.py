"""Files find the modules they are for, however their layers are named."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from named import (
    BUILDS,
    flux,
    lora,
    model,
    original,
    paths,
    spec_of,
    trained,
)

from ai_toolkit_inference import get_model
from ai_toolkit_inference.adapters.apply import AdapterState, Applied
from ai_toolkit_inference.adapters.bind import Binding, bind, match
from ai_toolkit_inference.adapters.names import (
    DENOISER,
    ORIGINAL,
    PREFIXES,
    SOLE_ENCODER,
    Prefix,
    spellings,
)
from ai_toolkit_inference.adapters.read import read_adapter
from ai_toolkit_inference.adapters.report import describe, fit
from ai_toolkit_inference.core.errors import AdapterError


@pytest.fixture
def fitted(write_layers, tmp_path) -> Callable[..., Binding]:
    """How a file with layers of these names falls on the components of a model."""

    def fitted(
        names: Mapping[str, Any], spec: Any, parts: Mapping[str, Any], side: str = ""
    ) -> Binding:
        layers = {name: lora(seed, module) for seed, (name, module) in enumerate(names.items())}
        path = write_layers(tmp_path / "lora.safetensors", layers)
        return match(read_adapter(path), spec, parts, side)

    return fitted


def component_of(prefix: Prefix) -> str:
    return {DENOISER: "unet", SOLE_ENCODER: "text_encoder"}.get(prefix.part, prefix.part)


@pytest.mark.parametrize("prefix", PREFIXES, ids=lambda prefix: prefix.text or "none")
def test_every_prefix_leads_to_its_component(load, fitted, prefix):
    spec = get_model("sd15" if prefix.part == SOLE_ENCODER else "sdxl")
    modules = {name: load(spec.id).modules[name] for name in spec.components if name != "vae"}
    if prefix.part == "text_encoder_3":
        modules["text_encoder_3"] = modules["text_encoder"]
    component = component_of(prefix)
    text = "" if component == "unet" else "text_model."
    names, expected = {}, {}
    for path, module in trained(modules[component]).items():
        level = text if not path.startswith(("text_model", "text_proj")) else ""
        name = prefix.text + f"{level}{path}".replace(".", prefix.separator)
        names[name], expected[name] = module, f"{component}.{path}"
    assert paths(fitted(names, spec, modules)) == expected


def test_clip_as_newer_libraries_name_it(load, fitted):
    """transformers 5.8 and newer have no `text_model` level, nor have files saved with them."""
    modules = load("sdxl").modules
    for component in ("text_encoder", "text_encoder_2"):
        bare = {path.removeprefix("text_model."): path for path in trained(modules[component])}
        names = {
            f"{component}.{name}": modules[component].get_submodule(bare[name]) for name in bare
        }
        found = paths(fitted(names, get_model("sdxl"), modules))
        assert found == {
            f"{component}.{name}": f"{component}.{path}" for name, path in bare.items()
        }


@pytest.mark.parametrize("component", ["unet", "text_encoder", "text_encoder_2"])
def test_a_name_of_one_component_is_none_of_another(load, fitted, component):
    modules = load("sdxl").modules
    (path, module), *_ = trained(modules[component]).items()
    for prefix in PREFIXES:
        if component_of(prefix) != component and prefix.text and component == "unet":
            name = prefix.text + path.replace(".", prefix.separator)
            assert fitted({name: module}, get_model("sdxl"), modules).unbound == (name,)
        if component_of(prefix) == "unet" and component != "unet":
            name = prefix.text + f"text_model.{path}".replace(".", prefix.separator)
            assert fitted({name: module}, get_model("sdxl"), modules).unbound == (name,)


def marked(names: Mapping[str, Any], endings: tuple[str, str]) -> dict[str, torch.Tensor]:
    """Tensors of these layers for another library's converter, told apart by their numbers."""
    return {
        f"{name}.{ending}": torch.full((2, 2), float(number))
        for number, name in enumerate(names)
        for ending in endings
    }


def from_library(name: str, names: list[str]) -> dict[str, str]:
    """Name in a file -> module path, as diffusers converts it."""
    from diffusers.loaders import lora_conversion_utils as convert

    endings, prefix = ("lora_A.weight", "lora_B.weight"), "transformer."
    if name == "sgm":
        endings, prefix = ("lora_down.weight", "lora_up.weight"), "unet."
    given = marked(dict.fromkeys(names), endings)
    if name == "sgm":
        given = convert._maybe_map_sgm_blocks_to_diffusers(given, model(name).config)
        given, _ = convert._convert_non_diffusers_lora_to_diffusers(given)
    elif name == "ltx2":
        given = convert._convert_non_diffusers_ltx2_lora_to_diffusers(given)
    elif name == "krea2":
        given = convert._convert_non_diffusers_krea2_lora_to_diffusers(given)
    else:
        given = convert._convert_non_diffusers_wan_lora_to_diffusers(given)
    found = {}
    for key, tensor in given.items():
        path = re.sub(r"\.lora[._].*|_lora\..*", "", key.removeprefix(prefix))
        if ".processor." in path:  # how old attention layers were named
            path = path.replace(".processor", "").replace("to_out", "to_out.0")
        found[names[int(tensor[0, 0])]] = path
    return found


@pytest.mark.parametrize("name", ["sgm", "wan", "wan i2v", "ltx2", "krea2"])
def test_original_names_lead_where_diffusers_leads_them(fitted, name):
    spec, modules = spec_of(name), trained(model(name))
    component = spec.lora.denoisers[0]
    start, separator = ("lora_unet_", "_") if name == "sgm" else ("diffusion_model.", ".")
    names = {start + original(name, path).replace(".", separator): path for path in modules}
    assert len(names) == len(modules)
    assert sum(path not in written for written, path in names.items()) > 15
    told = from_library(name, list(names))
    assert set(told) == set(names)
    found = paths(fitted({n: modules[p] for n, p in names.items()}, spec, {component: model(name)}))
    assert found == {written: f"{component}.{path}" for written, path in told.items()}


@pytest.mark.parametrize("name", BUILDS)
def test_original_names_are_those_of_one_model_only(fitted, name):
    """No module is reached under the original name of another."""
    seen: dict[object, str] = {}
    for path, module in model(name).named_modules():
        if getattr(module, "weight", None) is not None:
            for spelled in spellings(path, name.split()[0]):
                assert seen.setdefault(spelled, path) == path
    other = replace(spec_of(name), lora=replace(spec_of(name).lora, original=""))
    (path, module), *_ = (
        (path, module)
        for path, module in trained(model(name)).items()
        if original(name, path) != path
    )
    component = other.lora.denoisers[0]
    assert fitted({original(name, path): module}, other, {component: model(name)}).unbound


def test_every_table_is_tried():
    assert set(ORIGINAL) == {name.split()[0] for name in BUILDS}


# name in the file -> modules whose rows it has, in order
BFL = {
    "double_blocks.1.img_attn.qkv": [f"transformer_blocks.1.attn.to_{c}" for c in "qkv"],
    "double_blocks.0.txt_attn.qkv": [f"transformer_blocks.0.attn.add_{c}_proj" for c in "qkv"],
    "double_blocks.0.img_attn.proj": ["transformer_blocks.0.attn.to_out.0"],
    "double_blocks.0.txt_attn.proj": ["transformer_blocks.0.attn.to_add_out"],
    "double_blocks.0.img_mlp.0": ["transformer_blocks.0.ff.net.0.proj"],
    "double_blocks.0.img_mlp.2": ["transformer_blocks.0.ff.net.2"],
    "double_blocks.0.txt_mlp.0": ["transformer_blocks.0.ff_context.net.0.proj"],
    "double_blocks.0.txt_mlp.2": ["transformer_blocks.0.ff_context.net.2"],
    "double_blocks.0.img_mod.lin": ["transformer_blocks.0.norm1.linear"],
    "double_blocks.0.txt_mod.lin": ["transformer_blocks.0.norm1_context.linear"],
    "single_blocks.1.linear1": [
        *(f"single_transformer_blocks.1.attn.to_{c}" for c in "qkv"),
        "single_transformer_blocks.1.proj_mlp",
    ],
    "single_blocks.1.linear2": ["single_transformer_blocks.1.proj_out"],
    "single_blocks.1.modulation.lin": ["single_transformer_blocks.1.norm.linear"],
    "img_in": ["x_embedder"],
    "txt_in": ["context_embedder"],
    "time_in.in_layer": ["time_text_embed.timestep_embedder.linear_1"],
    "time_in.out_layer": ["time_text_embed.timestep_embedder.linear_2"],
    "vector_in.in_layer": ["time_text_embed.text_embedder.linear_1"],
    "vector_in.out_layer": ["time_text_embed.text_embedder.linear_2"],
    "guidance_in.in_layer": ["time_text_embed.guidance_embedder.linear_1"],
    "guidance_in.out_layer": ["time_text_embed.guidance_embedder.linear_2"],
    "final_layer.linear": ["proj_out"],
}
BFL_PREFIXES = [("lora_unet_", "_"), ("diffusion_model.", "."), ("", "."), ("transformer.", ".")]


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize(("prefix", "separator"), BFL_PREFIXES)
def test_a_fused_layer_is_the_rows_of_its_modules(write_layers, tmp_path, prefix, separator, live):
    torch.manual_seed(0)
    transformer = flux().requires_grad_(False)
    modules = dict(transformer.named_modules())
    layers = {
        name: lora(seed, *(modules[path] for path in parts))
        for seed, (name, parts) in enumerate(BFL.items())
    }
    named = {prefix + name.replace(".", separator): layer for name, layer in layers.items()}
    adapter = read_adapter(write_layers(tmp_path / "lora.safetensors", named))
    bound = bind(adapter, spec_of("bfl-flux"), {"transformer": transformer})
    assert len(bound) == sum(map(len, BFL.values()))
    x = {
        path: torch.randn(3, modules[path].in_features) for parts in BFL.values() for path in parts
    }
    before = {path: (modules[path].weight.clone(), modules[path](x[path])) for path in x}
    AdapterState(torch.device("cpu")).switch([Applied("a", bound, 1.0, live)])
    for name, parts in BFL.items():
        delta, row = layers[name].up @ layers[name].down, 0
        for path in parts:
            weight, output = before[path]
            rows = delta[row : row + len(weight)]
            row += len(weight)
            expected = output + x[path] @ rows.T
            torch.testing.assert_close(modules[path](x[path]), expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(modules[path].weight, weight if live else weight + rows)
        assert row == len(delta)


def test_the_parts_of_a_fused_layer_are_undone_together(write_layers, tmp_path):
    torch.manual_seed(0)
    transformer = flux().requires_grad_(False)
    before = {name: weight.clone() for name, weight in transformer.named_parameters()}
    modules = dict(transformer.named_modules())
    name = "double_blocks.1.img_attn.qkv"
    layer = lora(1, *(modules[path] for path in BFL[name]))
    adapter = read_adapter(write_layers(tmp_path / "lora.safetensors", {name: layer}))
    bound = bind(adapter, spec_of("bfl-flux"), {"transformer": transformer})
    state = AdapterState(torch.device("cpu"))
    state.switch([Applied("a", bound, 1.0, False)])
    changed = {
        name
        for name, weight in transformer.named_parameters()
        if not torch.equal(weight, before[name])
    }
    assert changed == {f"{path}.weight" for path in BFL[name]}
    state.clear()
    assert all(torch.equal(weight, before[n]) for n, weight in transformer.named_parameters())


@pytest.mark.parametrize("missing", [-1, 1])
def test_a_fused_layer_of_other_rows_is_refused(write_layers, tmp_path, missing):
    modules, name = dict(model("bfl-flux").named_modules()), "single_blocks.1.linear1"
    layer = lora(1, *(modules[path] for path in BFL[name]))
    up = torch.ones(len(layer.up) + missing, 2)
    path = write_layers(tmp_path / "lora.safetensors", {name: replace(layer, up=up)})
    binding = match(read_adapter(path), spec_of("bfl-flux"), {"transformer": model("bfl-flux")})
    assert not binding.bound
    assert binding.mismatched[0].startswith(f"{name} (")


@pytest.mark.parametrize("kind", ["lokr", "lokr factored"])
@pytest.mark.parametrize("prefix", ["lycoris_", "lora_transformer_", "transformer."])
def test_a_lokr_of_any_age(draw_layer, write_layers, tmp_path, prefix, kind):
    separator = "." if prefix.endswith(".") else "_"
    modules = {path: part for path, part in trained(model("bfl-flux")).items() if "blocks" in path}
    layers = {
        prefix + path.replace(".", separator): draw_layer(kind, module)
        for path, module in modules.items()
    }
    adapter = read_adapter(write_layers(tmp_path / "lokr.safetensors", layers))
    binding = match(adapter, spec_of("bfl-flux"), {"transformer": model("bfl-flux")})
    assert sorted(paths(binding).values()) == sorted(f"transformer.{path}" for path in modules)


class Ambiguous(torch.nn.Module):
    """Two modules whose paths differ in a dot for an underscore."""

    def __init__(self) -> None:
        super().__init__()
        self.mix_q = torch.nn.Linear(2, 2)
        self.mix = torch.nn.ModuleDict({"q": torch.nn.Linear(2, 2)})


def test_a_name_that_could_be_either_of_two_modules_is_refused(fitted):
    transformer = Ambiguous()
    parts, spec = {"transformer": transformer}, spec_of("bfl-flux")
    named = {"lora_transformer_mix_q": transformer.mix_q}
    assert fitted(named, spec, parts).unbound == ("lora_transformer_mix_q",)
    names = {
        "transformer.mix_q": transformer.mix_q,
        "transformer.mix.q": transformer.get_submodule("mix.q"),
    }
    assert paths(fitted(names, spec, parts)) == {name: name for name in names}


@pytest.mark.parametrize("module", [torch.nn.Embedding(8, 8), torch.nn.ConvTranspose2d(8, 8, 1)])
@pytest.mark.parametrize("kind", ["lora", "lokr", "lokr factored", "fullrank"])
def test_low_rank_layers_are_for_linear_and_convolutions(
    draw_layer, write_layers, tmp_path, kind, module
):
    """Their forward would fail, or be another one, on anything else."""
    layers = {"transformer.0": draw_layer(kind, module)}
    adapter = read_adapter(write_layers(tmp_path / "lora.safetensors", layers))
    binding = match(adapter, spec_of("bfl-flux"), {"transformer": torch.nn.Sequential(module)})
    assert len(binding.mismatched) == 1


def test_an_expert_of_a_model_with_one_is_no_hindrance(fitted):
    """Of Wan 2.1, say: the numbers mean nothing there."""
    (path, module), *_ = trained(model("wan")).items()
    names = {f"diffusion_model.transformer_1.{path}": module}
    found = paths(fitted(names, spec_of("wan"), {"transformer": model("wan")}))
    assert list(found.values()) == [f"transformer.{path}"]


def test_what_does_not_fit_is_left_out_only_where_that_is_allowed(write_layers, tmp_path):
    parts, spec = {"transformer": model("wan")}, spec_of("wan")
    modules = trained(model("wan"))
    good = [path for path in modules if "attn1" in path]
    layers = {f"diffusion_model.{path}": lora(1, modules[path]) for path in good}
    strange = {"diffusion_model.blocks.9.attn1.to_q": lora(2, modules[good[0]])}
    wide = {"diffusion_model.proj_out": lora(1, torch.nn.Linear(5, 5))}
    adapter = read_adapter(write_layers(tmp_path / "a.safetensors", layers | strange | wide))
    with pytest.raises(
        AdapterError, match=r"does not fit flux: 1 of .* 1 of .* have another shape"
    ):
        bind(adapter, spec, parts)
    bound = bind(adapter, spec, parts, allow_partial=True)
    assert {layer.path for layer in bound} == {f"transformer.{path}" for path in good}
    binding = match(adapter, spec, parts)
    report = fit(binding)
    assert report["unbound"] == list(strange)
    assert [name.partition(" ")[0] for name in report["mismatched"]] == list(wide)
    assert report["bound"] == len(good)
    text = describe(adapter, "mine", binding)
    assert f"{len(good)} of {len(good) + 2} layers bound: {len(good)} in transformer" in text
    assert f"1 name no module: {next(iter(strange))}" in text

    nothing = read_adapter(write_layers(tmp_path / "b.safetensors", strange | wide))
    with pytest.raises(AdapterError, match=r"does not fit flux: 1 of 2 .* 1 of 2 "):
        bind(nothing, spec, parts, allow_partial=True)
