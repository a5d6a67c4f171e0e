"""Adapters that the peft and diffusers libraries wrote act as in those libraries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ai_toolkit_inference import get_model
from ai_toolkit_inference.adapters.apply import AdapterState, Applied
from ai_toolkit_inference.adapters.bind import bind
from ai_toolkit_inference.adapters.cache import AdapterCache
from ai_toolkit_inference.adapters.read import Adapter, read_adapter
from ai_toolkit_inference.core.errors import AdapterError

peft = pytest.importorskip("peft")
try:
    peft.import_utils.is_torchao_available()
except ImportError as error:  # newer peft than torchao
    pytest.skip(str(error), allow_module_level=True)

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
FEED_FORWARD = ["ff.net.0.proj", "ff.net.2"]


def transformer(layers: int = 2) -> Any:
    """A FLUX transformer of a few thousand weights."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=layers,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    )
    return model.eval().requires_grad_(False)


def answer(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)

    def draw(*sides: int) -> torch.Tensor:
        return torch.randn(sides, generator=generator)

    with torch.no_grad():
        return model(
            hidden_states=draw(1, 6, 4),
            encoder_hidden_states=draw(1, 3, 24),
            pooled_projections=draw(1, 8),
            timestep=torch.tensor([0.5]),
            img_ids=draw(6, 3),
            txt_ids=draw(3, 3),
            return_dict=False,
        )[0]


def trained(config: Any) -> Any:
    """A peft model with random weights in all of its adapter's parts."""
    model = peft.get_peft_model(transformer(), config)
    generator = torch.Generator().manual_seed(2)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            noise = torch.randn(weight.shape, generator=generator) / 4
            weight.data = weight.data * (1 + noise) if "magnitude" in name else noise
    return model.eval()


def acting(adapter: Adapter, live: bool, multiplier: float = 1.0) -> torch.Tensor:
    """What the bare transformer gives with our adapter."""
    model = transformer()
    layers = bind(adapter, get_model("flux"), {"transformer": model})
    AdapterState(torch.device("cpu")).switch([Applied("a", layers, multiplier, live)])
    return answer(model)


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 4},
    "an alpha": {"r": 4, "lora_alpha": 7},
    "rsLoRA": {"r": 4, "lora_alpha": 3, "use_rslora": True},
    "DoRA": {"r": 4, "lora_alpha": 2, "use_dora": True},
    "DoRA as rsLoRA": {"r": 4, "lora_alpha": 2, "use_dora": True, "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"to_q": 2, "transformer_blocks.0.attn.to_k": 3},
        "alpha_pattern": {"to_q": 5, "transformer_blocks.1.attn.to_out.0": 1},
    },
    "patterns and rsLoRA": {
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "rank_pattern": {"to_q": 2, "ff.net.2": 1},
        "alpha_pattern": {"ff.net.2": 3},
    },
    "the first pattern decides": {
        "r": 4,
        "alpha_pattern": {"transformer_blocks.0.attn.to_q": 2, "attn.to_q": 3, "to_q": 5},
    },
    "a pattern from the start": {
        "r": 4,
        "alpha_pattern": {"^attn.to_q": 5, "^transformer_blocks.0.attn.to_k": 6},
    },
    "half a word is no match": {"r": 4, "alpha_pattern": {"o_q": 5, "0": 6}},
    "linear layers": {"r": 2, "target_modules": "all-linear"},
}


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("case", CONFIGS)
def test_a_folder_acts_as_in_peft(tmp_path, case, live):
    settings = {"target_modules": [*ATTENTION, *FEED_FORWARD], **CONFIGS[case]}
    trained(peft.LoraConfig(**settings)).save_pretrained(tmp_path)
    # read again, for patterns are saved in another order than they were given in
    expected = answer(peft.PeftModel.from_pretrained(transformer(), tmp_path))
    assert (expected - answer(transformer())).abs().max() > 1e-2
    adapter = read_adapter(tmp_path)
    assert adapter.live_only == ("DoRA" in case)
    if live or not adapter.live_only:
        torch.testing.assert_close(acting(adapter, live), expected, rtol=1e-5, atol=1e-5)


def test_the_file_of_a_folder_is_read_with_its_configuration(tmp_path):
    model = trained(peft.LoraConfig(r=4, lora_alpha=7, target_modules=ATTENTION))
    model.save_pretrained(tmp_path)
    by_folder, by_file = (
        read_adapter(tmp_path),
        read_adapter(tmp_path / "adapter_model.safetensors"),
    )
    assert by_folder.digest == by_file.digest
    assert {layer.alpha for layer in by_file.layers} == {7.0}
    shutil.copy(tmp_path / "adapter_model.safetensors", tmp_path / "other.safetensors")
    other = read_adapter(tmp_path / "other.safetensors")
    assert {layer.alpha for layer in other.layers} == {None}
    assert other.digest != by_file.digest


def test_another_configuration_is_another_adapter(tmp_path):
    model = trained(peft.LoraConfig(r=4, lora_alpha=4, target_modules=ATTENTION))
    model.save_pretrained(tmp_path)
    cache, config = AdapterCache(), tmp_path / "adapter_config.json"
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        for alpha in (4, 16):
            settings = json.loads(config.read_text()) | {"lora_alpha": alpha}
            config.unlink()
            config.write_text(json.dumps(settings))
            assert {layer.alpha for layer in cache.get(path).layers} == {float(alpha)}


@pytest.mark.parametrize("rslora", [False, True])
def test_what_diffusers_saves_with_its_metadata(tmp_path, rslora):
    from diffusers import FluxPipeline
    from diffusers.utils import convert_state_dict_to_diffusers

    config = peft.LoraConfig(
        r=4,
        lora_alpha=7,
        use_rslora=rslora,
        target_modules=ATTENTION,
        rank_pattern={"to_q": 2},
        alpha_pattern={"transformer_blocks.1.attn.to_k": 3},
    )
    model = trained(config)
    FluxPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=convert_state_dict_to_diffusers(
            peft.get_peft_model_state_dict(model)
        ),
        transformer_lora_adapter_metadata=config.to_dict(),
    )
    (file,) = tmp_path.iterdir()
    (tmp_path / "plain").mkdir()
    plain = tmp_path / "plain" / file.name
    keys = {key.replace("base_model.model.", ""): value for key, value in load_file(file).items()}
    save_file(keys, plain, _metadata(file))
    adapter = read_adapter(plain)
    torch.testing.assert_close(acting(adapter, True), answer(model), rtol=1e-5, atol=1e-5)


def _metadata(file: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return opened.metadata()


def test_what_a_diffusers_model_saves_by_itself(tmp_path):
    config = peft.LoraConfig(r=4, lora_alpha=7, target_modules=ATTENTION)
    model = transformer()
    model.add_adapter(config)
    torch.manual_seed(3)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.25)
    expected = answer(model)
    model.save_lora_adapter(tmp_path)
    (file,) = tmp_path.iterdir()
    adapter = read_adapter(file)
    torch.testing.assert_close(acting(adapter, True), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "stored", [{"alpha_pattern": {"to_[qk]": 3}}, {"init_lora_weights": "olora"}]
)
def test_what_diffusers_saves_and_nobody_can_follow_is_refused(tmp_path, stored):
    path = tmp_path / "lora.safetensors"
    pair = {f"transformer.a.lora_{half}.weight": torch.ones(2, 2) for half in "AB"}
    for prefix in ("", "transformer."):
        metadata = {f"{prefix}{key}": value for key, value in stored.items()}
        save_file(pair, path, {"lora_adapter_metadata": json.dumps(metadata)})
        with pytest.raises(AdapterError, match=r"regular expression|changed the base") as refusal:
            read_adapter(path)
        assert str(path) in str(refusal.value)


BROKEN = {
    "no JSON": ("{", "could not be read"),
    "no UTF-8": (b"\xff\xfe{", "could not be read"),
    "deep": ("[" * 100_000, "could not be read"),
    "a list": ("[]", "is of list"),
    "a number": ("3", "is of int"),
    "LoHa": ('{"peft_type": "LOHA"}', "is of LOHA; only LORA is read"),
    "IA3": ('{"peft_type": "IA3"}', "is of IA3"),
    "null": ('{"peft_type": null}', "is of None"),
    "PiSSA": ('{"init_lora_weights": "pissa_niter_16"}', "pissa_niter_16"),
    "OLoRA": ('{"init_lora_weights": "olora"}', "olora"),
    "regular expressions for alphas": (
        '{"alpha_pattern": {"transformer_blocks.[01].attn.to_q": 3}}',
        "regular expression",
    ),
    "regular expressions for ranks": ('{"rank_pattern": {".*to_(q|k)": 3}}', "regular expression"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_configurations(tmp_path, case):
    model = trained(peft.LoraConfig(r=4, lora_alpha=4, target_modules=ATTENTION))
    model.save_pretrained(tmp_path)
    assert read_adapter(tmp_path).layers
    content, words = BROKEN[case]
    config = tmp_path / "adapter_config.json"
    config.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AdapterError, match=words) as refusal:
        read_adapter(tmp_path)
    assert str(config) in str(refusal.value)


@pytest.mark.parametrize("setting", [{"bias": "all"}, {"modules_to_save": ["proj_out"]}])
def test_what_trains_more_than_the_adapter_is_refused(tmp_path, setting):
    config = peft.LoraConfig(r=4, target_modules=ATTENTION, **setting)
    trained(config).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match="are no adapter weights this version reads"):
        read_adapter(tmp_path)


def test_a_folder_without_weights(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterError, match=r"there is no LoRA file .*adapter_model"):
        read_adapter(tmp_path)
