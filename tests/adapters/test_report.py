"""The report says what is in the file, how strong it is, and what of it fits."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from ai_toolkit_inference import get_model
from ai_toolkit_inference.adapters.bind import match
from ai_toolkit_inference.adapters.read import read_adapter
from ai_toolkit_inference.adapters.report import describe, fit, norms, summary, trigger_word

LINEAR = torch.nn.Linear(16, 12)
CONV = torch.nn.Conv2d(8, 12, 3)
KINDS = ("lora", "lokr", "lokr factored", "fullrank", "diff", "diff without bias")


def explicit(layer) -> torch.Tensor:
    """All that the layer adds to its module at multiplier 1, in float64, as one vector."""
    parts = {
        name: getattr(layer, name).double()
        for name in ("down", "up", "w1", "w2", "w2_a", "w2_b", "diff", "diff_b")
        if getattr(layer, name, None) is not None
    }
    if "up" in parts:
        rank = parts["down"].shape[0]
        return (parts["up"].flatten(1) @ parts["down"].flatten(1)).flatten() * layer.alpha / rank
    if "w1" in parts:
        scale = 1.0
        if "w2_a" in parts:
            parts["w2"] = parts["w2_a"] @ parts["w2_b"]
            scale = layer.alpha / parts["w2_b"].shape[0]
        return torch.kron(parts["w1"], parts["w2"].flatten(1)).flatten() * scale
    return torch.cat([part.flatten() for part in parts.values()])


@pytest.mark.parametrize("module", [LINEAR, CONV], ids=["linear", "conv"])
@pytest.mark.parametrize("kind", [*KINDS, "dora"])
def test_a_norm_is_that_of_the_whole_delta(draw_layer, kind, module):
    for alpha in (2.0, -3.0):
        layer = draw_layer(kind, module, seed=1, alpha=alpha)
        if kind == "lokr":
            layer = draw_layer(kind, module, seed=1, alpha=None)
        expected = float(explicit(layer).norm())
        assert expected > 0.01
        assert layer.norm == pytest.approx(expected, rel=1e-9 if "lokr" not in kind else 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_has_the_norm_of_all_its_layers(draw_layer, write_layers, tmp_path, kind):
    names = {
        "transformer.blocks.2.attn.to_q": 1,
        "transformer.blocks.2.attn.to_out.0": 2,
        "transformer.blocks.10.attn.to_q": 3,
        "transformer.proj_out": 4,
    }
    layers = {name: draw_layer(kind, LINEAR, seed) for name, seed in names.items()}
    adapter = read_adapter(write_layers(tmp_path / "lora.safetensors", layers))
    deltas = {layer.name: explicit(layer) for layer in adapter.layers}
    expected = {
        "blocks.2": torch.cat([deltas[name] for name in names if "blocks.2" in name]),
        "blocks.10": deltas["transformer.blocks.10.attn.to_q"],
        "proj_out": deltas["transformer.proj_out"],
    }
    found = summary(adapter)["norms"]
    assert list(found) == ["blocks.2", "blocks.10", "proj_out"]
    for block, delta in expected.items():
        assert found[block] == pytest.approx(float(delta.norm()), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("lora_unet_down_blocks_1_attentions_0_proj_in", "down_blocks_1"),
        (
            "lora_te_text_model_encoder_layers_11_mlp_fc1",
            "text_encoder.text_model_encoder_layers_11",
        ),
        ("text_encoder_2.encoder.block.3.layer.0.q", "text_encoder_2.encoder.block.3"),
        ("diffusion_model.transformer_2.blocks.7.ffn.0", "transformer_2.blocks.7"),
        ("base_model.model.single_transformer_blocks.9.attn.to_k", "single_transformer_blocks.9"),
        ("unet.conv_in", "conv_in"),
        ("transformer.context_embedder2", "context_embedder2"),
    ],
)
def test_blocks_of_all_namings(draw_layer, write_layers, tmp_path, name, block):
    path = write_layers(tmp_path / "lora.safetensors", {name: draw_layer("lora", LINEAR)})
    assert list(norms(read_adapter(path).layers)) == [block]


ZEROED = [
    ("lora", "lora_up.weight"),
    ("lora", "lora_down.weight"),
    ("lokr", "lokr_w1"),
    ("lokr", "lokr_w2"),
    ("lokr factored", "lokr_w2_a"),
    ("lokr factored", "lokr_w2_b"),
    ("fullrank", "lora_down.weight"),
    ("diff without bias", "diff"),
]


@pytest.mark.parametrize(("kind", "part"), ZEROED)
def test_an_untrained_adapter_is_said_to_change_nothing(
    draw_layer, write_layers, tmp_path, kind, part
):
    from safetensors.torch import load_file

    names = ("transformer.a", "transformer.b")
    path = write_layers(
        tmp_path / "lora.safetensors", {name: draw_layer(kind, LINEAR) for name in names}
    )
    assert summary(read_adapter(path))["effective"]
    tensors = load_file(path)
    for number, name in enumerate(names):
        tensors[f"{name}.{part}"].zero_()
        save_file(tensors, path)
        adapter = read_adapter(path)
        report = summary(adapter)
        assert report["effective"] == (number == 0)  # one layer is enough to act
        assert ("changes nothing" in describe(adapter, "mine")) == (number == 1)
        assert list(report["norms"].values()).count(0.0) == number + 1


def test_a_bias_or_a_magnitude_alone_acts(draw_layer, write_layers, tmp_path):
    for kind, parts in (("diff", ["diff"]), ("dora", ["up", "down"])):
        layer = draw_layer(kind, LINEAR)
        for part in parts:
            getattr(layer, part).zero_()
        path = write_layers(tmp_path / "lora.safetensors", {"transformer.a": layer})
        assert read_adapter(path).effective


@pytest.mark.parametrize(
    ("tags", "word"),
    [
        ('{"1_ohwx": {"ohwx": 1}}', "ohwx"),
        ('{"1_a": {"one": 1, "two": 2}, "b": {"three": 3}}', "three"),
        ('{"1_a": {"one": 1, "two": 2}}', None),
        ('{"1_a": {}}', None),
        ("{}", None),
        ("[1]", None),
        ("{", None),
        ("", None),
        (None, None),
    ],
)
def test_the_trigger_word_is_the_only_tag(draw_layer, write_layers, tmp_path, tags, word):
    metadata = {"format": "pt"} | ({} if tags is None else {"ss_tag_frequency": tags})
    assert trigger_word(metadata) == word
    path = tmp_path / "lora.safetensors"
    adapter = read_adapter(write_layers(path, {"unet.a": draw_layer("lora", LINEAR)}, metadata))
    assert summary(adapter)["trigger_word"] == word
    assert ("\ntrigger word " in describe(adapter, "mine")) == (word is not None)


@pytest.mark.parametrize(
    ("info", "step", "epoch"),
    [
        ('{"step": 1500, "epoch": 3}', 1500, 3),
        ('{"step": 0, "epoch": 0}', 0, 0),
        ("[]", None, None),
        ("{", None, None),
        (None, None, None),
    ],
)
def test_the_step_of_the_training(draw_layer, write_layers, tmp_path, info, step, epoch):
    metadata = {"ss_output_name": "mine"} | ({} if info is None else {"training_info": info})
    path = tmp_path / "lora.safetensors"
    adapter = read_adapter(write_layers(path, {"unet.a": draw_layer("lora", LINEAR)}, metadata))
    report = summary(adapter)
    assert (report["name"], report["step"], report["epoch"]) == ("mine", step, epoch)
    assert (f"step {step}" in describe(adapter, "mine")) == (step is not None)


def test_all_that_a_file_says(draw_layer, write_layers, tmp_path):
    layers = {
        "transformer.blocks.0.a": draw_layer("lora", LINEAR, alpha=8.0),
        "transformer.blocks.0.b": draw_layer("lora", LINEAR, alpha=None),
        "transformer.blocks.1.a": draw_layer("dora", LINEAR, alpha=8.0),
        "transformer.blocks.1.b": draw_layer("lokr factored", LINEAR, alpha=1.0),
        "transformer.blocks.1.c": draw_layer("diff", LINEAR),
    }
    metadata = {
        "software": json.dumps({"name": "ai-toolkit", "version": "0.7.19"}),
        "ss_base_model_version": "flux.1",
        "another": "thing",
    }
    path = write_layers(tmp_path / "lora.safetensors", layers, metadata)
    adapter = read_adapter(path)
    report = json.loads(json.dumps(summary(adapter)))
    assert report["kinds"] == {"lora": 2, "dora": 1, "lokr": 1, "diff": 1}
    assert (report["layers"], report["rank"], report["alpha"]) == (5, [3, 4], [1.0, 8.0])
    assert (report["dtype"], report["effective"]) == (["float32"], True)
    assert (report["trainer_version"], report["base_model"]) == ("0.7.19", "flux.1")
    assert report["metadata"] == metadata
    assert report["file"] == str(path)
    assert report["bytes"] == sum(part.nbytes for x in layers.values() for part in x.tensors())
    assert len(report["sha256"]) == 64
    text = describe(adapter, "mine")
    assert text.startswith("mine: diff and kohya and lycoris LoRA and DoRA and LoKr and full")
    assert "trained on flux.1 with ai-toolkit 0.7.19" in text


def test_how_a_file_fits_a_model(load, trained_lora, tmp_path):
    from safetensors.torch import load_file

    spec, modules = get_model("sdxl"), load("sdxl").modules
    tensors = load_file(trained_lora("sdxl"))
    names = sorted({key.partition(".")[0] for key in tensors})
    unet = [name for name in names if name.startswith("lora_unet_")]
    for key in [key for key in tensors if key.startswith(f"{unet[0]}.")]:
        tensors[key.replace(unet[0], "lora_unet_nowhere")] = tensors.pop(key)
    tensors[f"{unet[1]}.lora_up.weight"] = tensors[f"{unet[1]}.lora_up.weight"][:-1].clone()
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    adapter = read_adapter(path)
    binding = match(adapter, spec, modules)
    report = summary(adapter, binding)
    assert report["unbound"] == ["lora_unet_nowhere"]
    (mismatched,) = report["mismatched"]
    assert mismatched.startswith(f"{unet[1]} (")
    assert report["bound"] == len(names) - 2
    assert set(report["modules"]) == {"unet", "text_encoder", "text_encoder_2"}
    assert report["modules"]["unet"] == len(unet) - 2
    assert sum(report["modules"].values()) == report["bound"]
    assert fit(binding).items() <= report.items()
    text = describe(adapter, "mine", binding)
    assert f"{len(names) - 2} of {len(names)} layers bound: " in text
    assert "1 name no module: lora_unet_nowhere" in text
    assert f"1 have another shape: {unet[1]} (" in text
