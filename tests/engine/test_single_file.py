"""Checkpoints in one .safetensors file, laid out as Stable Diffusion 1.5 and SDXL were released."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import DIFFUSERS_TO_LDM_MAPPING, fetch_diffusers_config
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from ai_toolkit_inference import Engine, SampleRequest, get_model
from ai_toolkit_inference.adapters.tiny import write_tiny_lora
from ai_toolkit_inference.core.errors import CheckpointError
from ai_toolkit_inference.core.requests import AdapterRef, Recipe
from ai_toolkit_inference.core.specs import ModelSpec
from ai_toolkit_inference.engine.weights import check_local, find_weights
from ai_toolkit_inference.pipelines import _tiny

Tensors = dict[str, torch.Tensor]
IDS = ("sd15", "sdxl")

# --- from a diffusers folder to the released layout ------------------------------------------

UNET = DIFFUSERS_TO_LDM_MAPPING["unet"]["layers"]
ADDED = DIFFUSERS_TO_LDM_MAPPING["unet"]["addition_embed_type"]
VAE = DIFFUSERS_TO_LDM_MAPPING["vae"]
OPENCLIP = DIFFUSERS_TO_LDM_MAPPING["openclip"]["layers"]
LAYERS = 3  # of a UNet block: two, and the resampling one
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_PARTS = {
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
OPENCLIP_PARTS = {
    "text_model.encoder.layers": "transformer.resblocks",
    "layer_norm": "ln_",
    "fc1": "c_fc",
    "fc2": "c_proj",
    "self_attn": "attn",
}


def single_file(folder: Path) -> Tensors:
    """The tensors of a diffusers folder under the names of a released single file."""
    parts = {
        name: load_file(path)
        for name in ("unet", "vae", "text_encoder", "text_encoder_2")
        for path in (folder / name).glob("*.safetensors")
    }
    tensors = _under("model.diffusion_model.", _unet(parts["unet"]))
    tensors |= _under("first_stage_model.", _vae(parts["vae"]))
    if "text_encoder_2" not in parts:
        tensors |= _under("cond_stage_model.transformer.", _clip(parts["text_encoder"]))
        return tensors | {"alphas_cumprod": torch.ones(1000), "model_ema.decay": torch.ones(())}
    tensors |= _under("conditioner.embedders.0.transformer.", _clip(parts["text_encoder"]))
    tensors |= _under("conditioner.embedders.1.model.", _openclip(parts["text_encoder_2"]))
    return tensors | {"denoiser.sigmas": torch.ones(1000)}


def _under(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor.contiguous() for name, tensor in tensors.items()}


def _unet(tensors: Tensors) -> Tensors:
    attention = {name.split(".attentions")[0] for name in tensors if ".attentions." in name}
    return {_unet_name(name, attention): tensor for name, tensor in tensors.items()}


def _unet_name(name: str, attention: set[str]) -> str:
    if name in UNET or name in ADDED:
        return (UNET | ADDED)[name]
    found = re.fullmatch(r"((\w+)_blocks?\.?(\d*))\.(\w+)\.(\d+)\.([\w.]+)", name)
    assert found, name
    block, side, number, kind, layer, rest = found.groups()
    part = "1" if kind == "attentions" else "0"
    if kind == "resnets":
        rest = _replaced(rest, RESNET)
    if side == "mid":
        return f"middle_block.{1 if part == '1' else 2 * int(layer)}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{LAYERS * int(number) + 3}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        return f"output_blocks.{LAYERS * int(number) + 2}.{2 if block in attention else 1}.{rest}"
    index = LAYERS * int(number) + int(layer)
    return (
        f"input_blocks.{index + 1}.{part}.{rest}"
        if side == "down"
        else (f"output_blocks.{index}.{part}.{rest}")
    )


def _vae(tensors: Tensors) -> Tensors:
    last = max(int(name.split(".")[2]) for name in tensors if ".up_blocks." in name)
    renamed = {_vae_name(name, last): tensor for name, tensor in tensors.items()}
    return {  # attention was made of 1x1 convolutions
        name: tensor[:, :, None, None] if ".attn_1." in name and tensor.dim() == 2 else tensor
        for name, tensor in renamed.items()
    }


def _vae_name(name: str, last: int) -> str:
    if name in VAE:
        return VAE[name]
    name = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{last - int(found[1])}", name)
    name = re.sub(r"down_blocks\.(\d)", r"down.\1", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda n: f"mid.block_{int(n[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("resnets", "block")
    name = re.sub(r"(down|up)samplers\.0", r"\1sample", name)
    return _replaced(name, VAE_PARTS)


def _clip(tensors: Tensors) -> Tensors:
    return tensors | {"text_model.embeddings.position_ids": torch.arange(77)[None]}


def _openclip(tensors: Tensors) -> Tensors:
    renamed = {"logit_scale": torch.tensor(4.6)}
    for name, tensor in tensors.items():
        if name in OPENCLIP:
            renamed[OPENCLIP[name]] = tensor.T if name.startswith("text_proj") else tensor
        elif ".q_proj." in name:
            three = [tensors[name.replace("q_proj", f"{n}_proj")] for n in "qkv"]
            joined = _replaced(name, OPENCLIP_PARTS).replace("q_proj.", "in_proj_")
            renamed[joined] = torch.cat(three)
        elif not re.search(r"\.[kv]_proj\.", name):
            renamed[_replaced(name, OPENCLIP_PARTS)] = tensor
    return renamed


def _replaced(name: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        name = name.replace(ours, theirs)
    return name


# --- checkpoints -----------------------------------------------------------------------------


def released(spec: ModelSpec) -> ModelSpec:
    """The model with a toy whose encoders can be told apart by their width, as real ones."""
    return replace(spec, build_tiny=_build_sdxl) if spec.id == "sdxl" else spec


def _build_sdxl(seed: int) -> dict[str, Any]:
    parts = get_model("sdxl").build_tiny(seed)
    narrow = parts["text_encoder_2"].config.to_dict()
    wide = CLIPTextConfig(**narrow | {"hidden_size": 48, "num_hidden_layers": 10})
    unet = UNet2DConditionModel.from_config({**parts["unet"].config, "cross_attention_dim": 80})
    assert isinstance(unet, UNet2DConditionModel)
    return parts | {
        "text_encoder_2": _tiny.fill(CLIPTextModelWithProjection(wide), seed + 3),
        "unet": _tiny.fill(unet, seed),
    }


@dataclass(frozen=True)
class Checkpoint:
    """One toy model, twice: a diffusers folder and a single file. configs: without weights."""

    spec: ModelSpec
    folder: Path
    file: Path
    configs: Path

    def recipe(self, weights: Path, dtype: str = "fp32", **more: Any) -> Recipe:
        return Recipe(self.spec.id, weights=str(weights), dtype=dtype, **more)


def make_checkpoint(model: str, root: Path) -> Checkpoint:
    spec = released(get_model(model))
    folder = _tiny.write_tiny(spec, root / "folder")
    file = root / "released.safetensors"
    save_file(single_file(folder), file)
    configs = root / "released"
    shutil.copytree(folder, configs, ignore=shutil.ignore_patterns("*.safetensors"))
    return Checkpoint(spec, folder, file, configs)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    return {model: make_checkpoint(model, tmp_path_factory.mktemp(model)) for model in IDS}


@pytest.fixture(params=IDS)
def checkpoint(request: pytest.FixtureRequest, checkpoints: dict[str, Checkpoint]) -> Checkpoint:
    return checkpoints[request.param]


def draw(engine: Engine, recipe: Recipe) -> np.ndarray:
    request = SampleRequest(
        recipe,
        prompt="a photo of a cat",
        negative_prompt="blurry",
        width=64,
        height=64,
        steps=2,
        seed=1,
    )
    return engine.sample(request).frames


# --- rendering -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_file_renders_as_the_folder(
    engine: Engine, checkpoint: Checkpoint, dtype: str, tmp_path: Path
) -> None:
    folder, file = (checkpoint.recipe(path, dtype) for path in (checkpoint.folder, checkpoint.file))
    modules = engine.model(folder).modules
    lora = write_tiny_lora(checkpoint.spec, modules, tmp_path / "lora.safetensors")
    adapters = (AdapterRef(str(lora), 0.8),)
    variants = [{}, {"adapters": adapters}, {"adapters": adapters, "mode": "live"}]
    pictures = [draw(engine, replace(folder, **variant)) for variant in variants]
    for picture, variant in zip(pictures, variants, strict=True):
        assert np.array_equal(picture, draw(engine, replace(file, **variant))), variant
    assert not np.array_equal(pictures[0], pictures[1])


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_every_tensor_is_that_of_the_folder(
    engine: Engine, checkpoint: Checkpoint, stored: torch.dtype, tmp_path: Path
) -> None:
    tensors = {name: _cast(tensor, stored) for name, tensor in load_file(checkpoint.file).items()}
    file = write_file(tmp_path, checkpoint, tensors)
    expected = engine.model(checkpoint.recipe(checkpoint.folder)).modules
    found = engine.model(checkpoint.recipe(file)).modules
    assert found.keys() == expected.keys()
    for part, module in found.items():
        values = module.state_dict()
        assert values.keys() == expected[part].state_dict().keys()
        for name, tensor in expected[part].state_dict().items():
            assert torch.equal(values[name], _cast(tensor, stored).float()), (part, name)


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def write_file(folder: Path, checkpoint: Checkpoint, tensors: Tensors) -> Path:
    """A single file with the checkpoint's configurations beside it."""
    file = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    if not file.with_suffix("").exists():
        file.with_suffix("").symlink_to(checkpoint.configs, target_is_directory=True)
    return file


# --- configurations --------------------------------------------------------------------------


def fill_hub_cache(checkpoint: Checkpoint, hub: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache as a download of the configurations leaves it; then the network goes away."""
    repository = hub / f"models--{checkpoint.spec.repo_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return shutil.copytree(checkpoint.configs, repository / "snapshots" / ("0" * 40))


def test_a_lone_file_takes_the_configurations_of_its_repository(
    engine: Engine, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = fill_hub_cache(checkpoint, tmp_path / "hub", monkeypatch)
    (tmp_path / "lone").mkdir()  # a folder of models, not of configurations
    lone = Path(shutil.copy(checkpoint.file, tmp_path / "lone.safetensors"))
    said: list[str] = []
    assert find_weights(checkpoint.spec, str(lone), said.append) == (lone, cached)
    assert {*said} == {f"Fetching {checkpoint.spec.repo_id}"}
    picture = draw(engine, checkpoint.recipe(checkpoint.folder))
    assert np.array_equal(picture, draw(engine, checkpoint.recipe(lone)))


def test_a_lone_file_without_network_is_told_what_to_do(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    lone = Path(shutil.copy(checkpoint.file, tmp_path / "lone.safetensors"))
    with pytest.raises(CheckpointError, match=r"put .* configuration .* into .*lone$"):
        find_weights(checkpoint.spec, str(lone), print)


def test_configurations_of_another_model_are_refused(
    checkpoint: Checkpoint, checkpoints: dict[str, Checkpoint], tmp_path: Path
) -> None:
    (other,) = (checkpoints[model] for model in IDS if model != checkpoint.spec.id)
    file = write_file(tmp_path, other, load_file(checkpoint.file))
    with pytest.raises(CheckpointError, match=f"is a {other.spec.pipeline} checkpoint"):
        find_weights(checkpoint.spec, str(file), print)


# --- files that cannot be drawn from ----------------------------------------------------------


def test_the_other_model_is_refused(checkpoints: dict[str, Checkpoint]) -> None:
    sd15, sdxl = (checkpoints[model] for model in IDS)
    with pytest.raises(CheckpointError, match=r"is an SDXL checkpoint\. sd15 "):
        check_local(sd15.spec, str(sdxl.file))
    with pytest.raises(CheckpointError, match=r"is a Stable Diffusion 1 checkpoint\. sdxl "):
        check_local(sdxl.spec, str(sd15.file))


@pytest.mark.parametrize(
    ("lost", "part"),
    [
        ("model.diffusion_model.out.2.bias", "lacks tensors of Stable Diffusion"),
        ("first_stage_model.encoder", "lacks tensors of Stable Diffusion"),
        ("text_model.final_layer_norm.bias", "text_encoder lacks 1 tensors"),
    ],
)
def test_a_missing_tensor_is_never_made_up(
    engine: Engine, checkpoint: Checkpoint, lost: str, part: str, tmp_path: Path
) -> None:
    tensors = {k: v for k, v in load_file(checkpoint.file).items() if lost not in k}
    file = write_file(tmp_path, checkpoint, tensors)
    with pytest.raises(CheckpointError, match=part):
        engine.model(checkpoint.recipe(file))


def test_diffusers_knows_the_files_as_the_models_repository(checkpoint: Checkpoint) -> None:
    # the trainer takes the configurations of the repository that diffusers infers
    inferred = fetch_diffusers_config(load_file(checkpoint.file))
    assert inferred == {"pretrained_model_name_or_path": checkpoint.spec.repo_id}
