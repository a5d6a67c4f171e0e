"""Files that are no whole SD 1.5 or SDXL checkpoint, refused by their header."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ai_toolkit_inference import get_model
from ai_toolkit_inference.core.errors import CheckpointError
from ai_toolkit_inference.pipelines._single_file import check_single_file

Tensors = dict[str, torch.Tensor]
FP8 = torch.float8_e4m3fn
UNET = "model.diffusion_model."
FIRST = f"{UNET}input_blocks.0.0.weight"


def ones(*names: str) -> Tensors:
    return {name: torch.ones(2) for name in names}


BODY = {FIRST: torch.ones(8, 4, 3, 3)} | ones("first_stage_model.decoder.conv_in.weight")
TEXT = {
    "sd15": ones("cond_stage_model.transformer.text_model.final_layer_norm.weight"),
    "sdxl": ones(
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight",
        "conditioner.embedders.1.model.ln_final.weight",
    ),
}
PART_OF = [
    ("a bare UNet", {FIRST: BODY[FIRST]}, "a UNet or transformer alone.*lacks VAE, .*encoder"),
    ("a bare diffusers UNet", ones("down_blocks.0.resnets.0.conv1.weight"), "alone.*lacks UNet"),
    ("FLUX", ones(f"{UNET}double_blocks.0.img_attn.proj.weight"), "alone.*lacks UNet"),
    ("a VAE", ones("decoder.conv_in.weight"), "is a VAE"),
    ("UNet and VAE", BODY, "alone.*lacks (first )?text encoder"),
    ("SD 2", BODY | ones("cond_stage_model.model.ln_final.weight"), "a Stable Diffusion 2"),
    ("a refiner", BODY | ones("conditioner.embedders.0.model.ln_final.weight"), "SDXL refiner"),
    ("a kohya LoRA", ones("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"), "a LoRA;"),
    ("a peft LoRA", ones("transformer.single_blocks.0.proj.lora_A.weight"), "a LoRA;"),
    ("a LoKr", ones(f"{UNET}middle_block.1.proj_in.lokr_w1"), "a LoRA;"),
    ("nothing", {}, "is no checkpoint"),
]
VARIANTS = [
    ("inpainting", {FIRST: torch.ones(8, 9, 3, 3)}, "takes 9 channels, sd.* takes 4"),
    ("v-prediction", ones("v_pred"), "holds 'v_pred'"),
    ("Playground", ones("edm_mean"), "holds 'edm_mean'"),
    ("fp8", {FIRST: torch.ones(8, 4, 3, 3).to(FP8)}, r"is quantized \(F8_E4M3\)"),
    ("int8", {f"{UNET}out.2.weight": torch.ones(2, dtype=torch.int8)}, r"is quantized \(I8\)"),
]


@pytest.fixture(params=TEXT)
def model(request: pytest.FixtureRequest) -> str:
    return request.param


def check(model: str, tensors: Tensors, folder: Path) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    check_single_file(get_model(model), folder / "model.safetensors")


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_a_whole_checkpoint_is_accepted(model: str, stored: torch.dtype, tmp_path: Path) -> None:
    tensors = {name: tensor.to(stored) for name, tensor in (BODY | TEXT[model]).items()}
    check(model, tensors | {"position_ids": torch.arange(77)}, tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"), [case[1:] for case in PART_OF], ids=[case[0] for case in PART_OF]
)
def test_other_files_are_told_apart(
    model: str, tensors: Tensors, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=f"{message}.*") as caught:
        check(model, tensors, tmp_path)
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("tensors", "message"), [case[1:] for case in VARIANTS], ids=[case[0] for case in VARIANTS]
)
def test_other_variants_are_told_apart(
    model: str, tensors: Tensors, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        check(model, BODY | TEXT[model] | tensors, tmp_path)


def test_every_part_is_needed(model: str, tmp_path: Path) -> None:
    whole = BODY | TEXT[model]
    for lost in whole:
        with pytest.raises(CheckpointError, match=r"lacks \w.*"):
            check(model, {name: whole[name] for name in whole if name != lost}, tmp_path)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(model: str, kept: int, tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.safetensors", tmp_path / "part.safetensors"
    save_file(BODY | TEXT[model], whole)
    part.write_bytes(whole.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"is not (complete|a \.safetensors file)"):
        check_single_file(get_model(model), part)


@pytest.mark.parametrize(
    "content",
    [b"PK\x03\x04" + b"\0" * 99, b"<!DOCTYPE html><html></html>", b"version https://git-lfs"]
    + [len(text).to_bytes(8, "little") + text + b" " for text in (b"[]", b'{"a": 1}', b"{")],
)
def test_other_content_is_refused(model: str, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is not a \.safetensors file"):
        check_single_file(get_model(model), file)
