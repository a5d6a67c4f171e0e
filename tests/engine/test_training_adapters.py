"""LoRAs under the trained one: found, refused, merged into the base and acting on it."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear

from ai_toolkit_inference import Engine, get_model, list_models
from ai_toolkit_inference.adapters.fuse import fuse
from ai_toolkit_inference.adapters.lora import LiveLora, LoraLayer
from ai_toolkit_inference.core.errors import AdapterError, InvalidInputError
from ai_toolkit_inference.core.requests import Recipe
from ai_toolkit_inference.engine.training_adapters import (
    ASSISTANT,
    FIELDS,
    FUSED,
    INFERENCE,
    BaseLora,
    attach_base_loras,
    check_base_loras,
    locate_base_lora,
    merge_base_loras,
)
from ai_toolkit_inference.engine.weights import tiny_base_lora, tiny_folder
from ai_toolkit_inference.pipelines._loading import load_model
from ai_toolkit_inference.quantization.module import PackedLayer

FEEDS = "transformer.single_transformer_blocks.0.attn.to_k"


@pytest.fixture
def base_lora():
    """The file of a LoRA that a job's `model` section could name."""
    return lambda model="zimage_turbo": tiny_base_lora(get_model(model))


@pytest.fixture
def with_base(ask):
    """A request on a base with such a LoRA."""

    def with_base(model, field, path="tiny", **fields):
        request = ask(model, **({"steps": 1} | fields))
        return replace(request, recipe=replace(request.recipe, **{field: str(path)}))

    return with_base


def fresh(model, dtype="bf16"):
    spec = get_model(model)
    return load_model(spec, tiny_folder(spec), None, dtype, torch.device("cpu"))


def read(engine, model, path, field):
    return BaseLora(field, engine.adapter(Recipe(model, weights="tiny"), str(path)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["linear", "conv 3x3", "conv 1x1"])
def test_fusing_rounds_as_peft_does(dtype, kind):
    peft = pytest.importorskip("peft.tuners.lora")
    torch.manual_seed(0)
    if kind == "linear":
        module, made = torch.nn.Linear(40, 24), peft.Linear
    else:
        module, made = torch.nn.Conv2d(12, 20, 3 if "3" in kind else 1), peft.Conv2d
    module = module.to(dtype)
    theirs = made(module, "a", r=4, lora_alpha=3)
    down, up = theirs.lora_A["a"].weight, theirs.lora_B["a"].weight
    layer = LoraLayer("x", 3.0, torch.randn(down.shape), torch.randn(up.shape))
    down.data, up.data = layer.down.to(dtype), layer.up.to(dtype)
    before = module.weight.detach().clone()
    weight = before.clone()
    fuse(layer, weight, torch.device("cpu"))
    theirs.merge()
    assert torch.equal(weight, module.weight)
    assert not torch.equal(weight, before)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("ostris/z_adapter/z_v1.safetensors", "hf://ostris/z_adapter/z_v1.safetensors"),
        ("ostris/z_adapter/sub/z.safetensors", "hf://ostris/z_adapter/sub/z.safetensors"),
        ("ostris/FLUX.1-x", "hf://ostris/FLUX.1-x/pytorch_lora_weights.safetensors"),
        ("https://a.test/x.safetensors", "https://a.test/x.safetensors"),
        ("hf://a/b/x.safetensors", "hf://a/b/x.safetensors"),
    ],
)
def test_names_of_repositories_are_read_as_the_trainer_reads_them(path, found):
    assert locate_base_lora(path) == found


@pytest.mark.parametrize(
    "path", ["loras/x.safetensors", "/nowhere/x.safetensors", "C:\\x.safetensors", "x", "../a/b"]
)
def test_what_is_nowhere_is_refused(path):
    with pytest.raises(AdapterError, match=r"no LoRA at .*owner/repository/file"):
        locate_base_lora(path)


def test_files_and_folders_win_over_repositories(tmp_path, base_lora, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "owner" / "repository"
    folder.mkdir(parents=True)
    file = shutil.copy(base_lora(), folder / "x.safetensors")
    assert locate_base_lora("owner/repository/x.safetensors") == "owner/repository/x.safetensors"
    assert locate_base_lora("owner/repository") == "owner/repository"  # peft's, if anyone's
    shutil.copy(file, folder / "pytorch_lora_weights.safetensors")
    assert locate_base_lora(str(folder)) == str(folder / "pytorch_lora_weights.safetensors")


def test_which_models_take_which():
    takers = {f: [s.id for s in list_models() if f in s.base_loras.fields] for f in FIELDS}
    flux = ["flex1", "flux", "flux_schnell"]
    others = [s.id for s in list_models() if s.id.startswith(("krea2", "zimage"))]
    assert sorted(takers[ASSISTANT]) == sorted(flux + others)
    assert sorted(takers[INFERENCE]) == flux
    assert sorted(takers[FUSED]) == [*flux, "sd15", "sdxl"]


def test_others_refuse_before_anything_is_read(with_base):
    engine = Engine("cpu")
    for model, field in (("sd15", ASSISTANT), ("zimage_turbo", FUSED), ("krea2", INFERENCE)):
        with pytest.raises(InvalidInputError, match=rf"{model} takes no {field}.*flux_schnell"):
            engine.sample(with_base(model, field, "nowhere/at/all.safetensors"))
    assert engine.loads == 0


def test_the_trainer_takes_one_at_a_time():
    spec = get_model("flux")
    both = Recipe("flux", assistant_lora_path="a", lora_path="b")
    with pytest.raises(InvalidInputError, match=r"assistant_lora_path and lora_path are given"):
        check_base_loras(spec, both)
    assert check_base_loras(spec, Recipe("flux", lora_path=" ")) == {}


def test_files_that_the_trainer_fails_on_are_refused(with_base, base_lora, lora, tmp_path):
    engine, path = Engine("cpu"), tmp_path / "x.safetensors"
    tensors = load_file(base_lora("flux_schnell"))
    kept = {key: value for key, value in tensors.items() if not key.startswith(FEEDS)}
    save_file(kept, path)
    with pytest.raises(AdapterError, match=rf"no layer {FEEDS}, by which the trainer reads"):
        engine.plan(with_base("flux_schnell", ASSISTANT, path))
    engine.plan(with_base("flux_schnell", FUSED, path))  # peft reads every layer by itself

    narrow = {key: value[:2] for key, value in tensors.items() if key == f"{FEEDS}.lora_A.weight"}
    narrow |= {k: v[:, :2] for k, v in tensors.items() if k == f"{FEEDS}.lora_B.weight"}
    save_file({k: v.contiguous() for k, v in (tensors | narrow).items()}, path)
    with pytest.raises(AdapterError, match=r"layers of the ranks 2, 4; the trainer makes them"):
        engine.plan(with_base("flux_schnell", INFERENCE, path))

    diff = {"transformer.norm_out.linear.diff": torch.ones(2, 2)}
    save_file(tensors | diff, path)
    with pytest.raises(AdapterError, match=r"holds diff layers .* is a plain LoRA"):
        engine.plan(with_base("flux_schnell", FUSED, path))

    with pytest.raises(AdapterError, match=r"changes text_encoder\..*the transformer only"):
        engine.sample(with_base("flux_schnell", FUSED, lora("flux_schnell")))


def test_another_one_is_another_base(with_base, ask, base_lora, lora, tmp_path):
    engine, path = Engine("cpu"), tmp_path / "a.safetensors"
    shutil.copy(base_lora(), path)
    plain = ask("zimage_turbo", dtype="bf16", steps=1)
    assisted = with_base("zimage_turbo", ASSISTANT, path, dtype="bf16")
    trained = replace(
        plain, recipe=ask("zimage_turbo", adapters=((lora("zimage_turbo"), 1),)).recipe
    )

    def draw(request):
        return engine.sample(request).frames.tobytes()

    first, second = draw(plain), draw(assisted)
    assert first != second  # what both roundings left
    assert engine.holds(assisted.recipe)
    assert not engine.holds(plain.recipe)
    with_lora = replace(assisted, recipe=replace(assisted.recipe, adapters=trained.recipe.adapters))
    third = draw(with_lora)
    assert engine.loads == 2
    assert (draw(assisted), draw(plain), draw(with_lora)) == (second, first, third)
    assert len({first, second, third}) == 3

    loads = engine.loads
    save_file({key: 2 * value for key, value in load_file(path).items()}, path)
    assert not engine.holds(with_lora.recipe)
    assert draw(assisted) != second
    assert engine.loads == loads + 1


@pytest.mark.parametrize("model", ["zimage_turbo", "flux_schnell", "krea2_turbo"])
def test_an_assistant_is_taken_away_up_to_rounding(with_base, ask, model):
    engine = Engine("cpu")
    plain = engine.sample(ask(model)).frames.astype(int)
    assisted = engine.sample(with_base(model, ASSISTANT, steps=2))
    assert abs(assisted.frames.astype(int) - plain).max() <= 2
    assert assisted.info["base_loras"][0]["field"] == ASSISTANT
    assert len(assisted.info["base_loras"][0]["sha256"]) == 64


def test_one_for_sampling_acts_and_a_fused_one_stays(with_base, ask):
    engine = Engine("cpu")
    plain = engine.sample(ask("flux", steps=1)).frames.astype(int)
    live = engine.sample(with_base("flux", INFERENCE)).frames.astype(int)
    fused = engine.sample(with_base("flux", FUSED)).frames.astype(int)
    assert abs(live - plain).max() > 20
    assert abs(live - fused).max() <= 2


def test_the_arithmetic_is_in_the_models_precision(base_lora):
    model = fresh("zimage_turbo")
    lora = read(Engine("cpu"), "zimage_turbo", base_lora(), ASSISTANT)
    layer = lora.adapter.layers[0]
    assert isinstance(layer, LoraLayer)
    path = layer.name.removeprefix("diffusion_model.")
    module = model.modules["transformer"].get_submodule(path)
    before = module.weight.detach().clone()
    attach_base_loras(model, merge_base_loras(model, (lora,)))
    down, up = layer.down.bfloat16(), layer.up.bfloat16()
    assert torch.equal(module.weight, (before.float() + up.float() @ down.float()).bfloat16())
    x = torch.randn(3, before.shape[1]).bfloat16()
    away = linear(linear(x, down), up) * -1.0
    assert away.dtype == torch.bfloat16
    assert torch.equal(module(x), linear(x, module.weight, module.bias) + away)


@pytest.mark.parametrize(("model", "reached"), [("zimage_turbo", False), ("flux_schnell", True)])
def test_modules_that_quantization_replaced(base_lora, model, reached):
    """The trainer's own networks still hold the old ones; what it fuses by peft comes after."""
    loaded = fresh(model)
    lora = read(Engine("cpu"), model, base_lora(model), ASSISTANT)
    under = merge_base_loras(loaded, (lora,))
    component, _, path = under[0].bound.path.partition(".")
    parent, _, name = path.rpartition(".")
    old = under[0].bound.module
    new = torch.nn.Linear(old.in_features, old.out_features, old.bias is not None)
    setattr(loaded.modules[component].get_submodule(parent), name, new)
    attach_base_loras(loaded, under)
    assert isinstance(new.forward, LiveLora) is reached
    assert not isinstance(old.forward, LiveLora)


@pytest.mark.parametrize(
    ("model", "quantize", "held", "acts"),
    [
        ("zimage_turbo", "qfloat8", "Float8Rows", True),
        ("zimage_turbo", "qint8", "QuantoBytes", False),
        ("flux_schnell", "qint8", "QuantoBytes", True),
    ],
)
def test_on_a_quantized_base(with_base, model, quantize, held, acts):
    engine = Engine("cpu")
    request = with_base(model, ASSISTANT, dtype="bf16")
    transformer = engine.model(replace(request.recipe, quantize=quantize)).modules["transformer"]
    packed = [m for m in transformer.modules() if isinstance(m, PackedLayer)]
    assert {type(module.scheme).__name__ for module in packed} == {held}
    assert any(isinstance(module.forward, LiveLora) for module in packed) is acts


@pytest.mark.parametrize("field", ["", ASSISTANT])
def test_layers_in_the_trainers_own_qtypes_restore_their_weights_under_an_assistant(
    with_base, field
):
    request = with_base("zimage_turbo", field or ASSISTANT, "tiny" if field else "", dtype="bf16")
    model = Engine("cpu").model(replace(request.recipe, quantize="convrot8"))
    packed = [m for m in model.modules["transformer"].modules() if isinstance(m, PackedLayer)]
    assert {module.restores for module in packed} == {bool(field)}
