"""Toy FLUX.2 and Chroma as the trainer wants them: released files, and its classes made small.

Used by `trainer_run.py`, inside the trainer's interpreter; imports nothing of this package.
"""

import functools
import importlib
import json
import re
import shutil
import types
from pathlib import Path

EXTENSIONS = "extensions_built_in.diffusion_models"
SIDES = {"": "img", "_context": "txt"}
# in a block, for the picture and for the text
DOUBLE = {
    ("attn.to_q", "attn.to_k", "attn.to_v"): "img_attn.qkv",
    ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"): "txt_attn.qkv",
    ("attn.to_out.0",): "img_attn.proj",
    ("attn.to_add_out",): "txt_attn.proj",
    ("attn.norm_q",): "img_attn.norm.query_norm",
    ("attn.norm_k",): "img_attn.norm.key_norm",
    ("attn.norm_added_q",): "txt_attn.norm.query_norm",
    ("attn.norm_added_k",): "txt_attn.norm.key_norm",
    **{(f"ff{s}.{part}",): f"{name}_mlp.0" for s, name in SIDES.items()
       for part in ("linear_in", "net.0.proj")},
    **{(f"ff{s}.{part}",): f"{name}_mlp.2" for s, name in SIDES.items()
       for part in ("linear_out", "net.2")},
}  # fmt: skip
SINGLE = {
    ("attn.to_qkv_mlp_proj",): "linear1",
    ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"): "linear1",
    ("attn.to_out",): "linear2",
    ("proj_out",): "linear2",
    ("attn.norm_q",): "norm.query_norm",
    ("attn.norm_k",): "norm.key_norm",
}
WHOLE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
}


def model_settings(job: dict, folder: str) -> dict:
    """The job's `model` section; its files are put under `folder`."""
    checkpoint, target = Path(job["checkpoint"]), Path(folder, "released")
    target.mkdir(parents=True, exist_ok=True)
    if job["arch"] == "chroma":
        return _chroma(checkpoint, target)
    return _flux2(job["arch"], checkpoint, target)


# --- FLUX.2 ----------------------------------------------------------------------------------


def _flux2(arch: str, checkpoint: Path, target: Path) -> dict:
    model = importlib.import_module(f"{EXTENSIONS}.flux2.flux2_model")
    encoder = target / "te"
    for part in ("tokenizer", "text_encoder"):
        shutil.copytree(checkpoint / part, encoder, dirs_exist_ok=True)
    model.MISTRAL_PATH = str(encoder)
    config, vae = _config(checkpoint, "transformer"), _config(checkpoint, "vae")
    heads, widths = config["num_attention_heads"], vae["block_out_channels"]
    sizes = {
        "in_channels": config["in_channels"],
        "context_in_dim": config["joint_attention_dim"],
        "hidden_size": heads * config["attention_head_dim"],
        "num_heads": heads,
        "depth": config["num_layers"],
        "depth_single_blocks": config["num_single_layers"],
        "axes_dim": config["axes_dims_rope"],
    }
    _make_small(model, "Flux2Params", sizes)
    levels = [width // widths[0] for width in widths]
    vae_sizes = {"ch": widths[0], "ch_mult": levels, "num_res_blocks": vae["layers_per_block"]}
    _make_small(model, "AutoEncoderParams", vae_sizes)
    file = target / model.FLUX2_TRANSFORMER_FILENAME
    if arch != "flux2":
        klein = importlib.import_module(f"{EXTENSIONS}.flux2.flux2_klein_model")
        for size in ("4B", "9B"):
            _make_small(klein, f"Klein{size}Params", sizes)
            kind = getattr(klein, f"Flux2Klein{size}Model")
            kind.flux2_klein_te_path = str(encoder)
            file = target / kind.flux2_te_filename if kind.arch == arch else file
    _save(_network(_tensors(checkpoint, "transformer")), file)
    _save(_vae(_tensors(checkpoint, "vae")), target / model.FLUX2_VAE_FILENAME)
    return {"name_or_path": str(target)}


def _make_small(module, name: str, sizes: dict) -> None:
    # a settings class of the trainer now gives these sizes
    released = getattr(module, name)
    if isinstance(released, functools.partial):  # of an earlier job
        released = released.func
    setattr(module, name, functools.partial(released, **sizes))


def _vae(tensors: dict) -> dict:
    return {_vae_name(name): _as_convolution(name, value) for name, value in tensors.items()}


def _as_convolution(name: str, value):
    attention = "attentions" in name and name.endswith(".weight") and value.dim() == 2
    return value[:, :, None, None] if attention else value


def _vae_name(name: str) -> str:
    for pattern, replacement in (
        (r"^quant_conv", "encoder.quant_conv"),
        (r"^post_quant_conv", "decoder.post_quant_conv"),
        (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"conv_shortcut", "nin_shortcut"),
        (r"conv_norm_out", "norm_out"),
    ):
        name = re.sub(pattern, replacement, name)
    up = re.match(r"decoder\.up_blocks\.(\d)\.(.*)", name)
    if up:
        rest = up[2].replace("resnets", "block").replace("upsamplers.0", "upsample")
        name = f"decoder.up.{3 - int(up[1])}.{rest}"
    return name


# --- Chroma ----------------------------------------------------------------------------------


def _chroma(checkpoint: Path, target: Path) -> dict:
    model = importlib.import_module(f"{EXTENSIONS}.chroma.chroma_model")
    config = _config(checkpoint, "transformer")
    heads = config["num_attention_heads"]
    vars(model.chroma_params).update(
        context_in_dim=config["joint_attention_dim"],
        hidden_size=heads * config["attention_head_dim"],
        num_heads=heads,
        axes_dim=config["axes_dims_rope"],
        approximator_depth=config["approximator_layers"],
        approximator_hidden_size=config["approximator_hidden_dim"],
    )
    parts = {
        "T5TokenizerFast": "tokenizer",
        "T5EncoderModel": "text_encoder",
        "AutoencoderKL": "vae",
    }
    for name, part in parts.items():
        setattr(model, name, _from_here(getattr(model, name), checkpoint / part))
    if not importlib.import_module("torch").cuda.is_available():
        model.FakeCLIP = _on_cpu(model.FakeCLIP)
    file = target / "chroma.safetensors"
    _save(_network(_tensors(checkpoint, "transformer")), file)
    return {"name_or_path": str(file)}


def _from_here(stock, folder: Path):
    # stands for a class that the trainer loads from a repository it names itself
    stock = getattr(stock, "stock", stock)

    def from_pretrained(_repository, subfolder=None, **kwargs):
        return stock.from_pretrained(str(folder), **kwargs)

    return types.SimpleNamespace(stock=stock, from_pretrained=from_pretrained)


def _on_cpu(stock):
    # the stand-in for CLIP says that it is on a GPU, and the pipeline asks it
    class OnCpu(getattr(stock, "stock", stock)):
        def __init__(self):
            super().__init__()
            self.device = "cpu"

    OnCpu.stock = getattr(stock, "stock", stock)
    return OnCpu


# --- both --------------------------------------------------------------------------------------


def _network(tensors: dict) -> dict:
    # names of diffusers -> names of the release; projections of a block in one
    torch = importlib.import_module("torch")
    blocks: dict = {}
    released = {}
    for name, value in tensors.items():
        block = re.match(r"(single_)?transformer_blocks\.(\d+)\.(.*)\.(weight|bias)$", name)
        if block:
            start = f"{'single' if block[1] else 'double'}_blocks.{block[2]}"
            blocks.setdefault((start, block[4]), {})[block[3]] = value
        else:
            released[_whole_name(name)] = value
    for (start, leaf), parts in blocks.items():
        for ours, theirs in (SINGLE if start.startswith("single") else DOUBLE).items():
            if all(part in parts for part in ours):
                end = "scale" if "norm" in theirs else leaf
                rows = torch.cat([parts.pop(part) for part in ours])
                released[f"{start}.{theirs}.{end}"] = rows
        if parts:
            raise ValueError(f"{start} has {sorted(parts)}, which the release has not")
    last = "final_layer.adaLN_modulation.1.weight"
    if last in released:  # diffusers has the halves the other way round
        released[last] = torch.cat(released[last].chunk(2)[::-1])
    return released


def _whole_name(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    if module in WHOLE:
        return f"{WHOLE[module]}.{leaf}"
    if re.match(r"distilled_guidance_layer\.norms", module):
        return f"{module}.scale"
    module = module.replace(".linear_1", ".in_layer").replace(".linear_2", ".out_layer")
    module = re.sub(r"(modulation\w*)\.linear$", r"\1.lin", module)
    return f"{module}.{leaf}"


def _config(checkpoint: Path, part: str) -> dict:
    return json.loads((checkpoint / part / "config.json").read_text())


def _tensors(checkpoint: Path, part: str) -> dict:
    load_file = importlib.import_module("safetensors.torch").load_file
    return load_file(checkpoint / part / "diffusion_pytorch_model.safetensors")


def _save(tensors: dict, file: Path) -> None:
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    importlib.import_module("safetensors.torch").save_file(tensors, file)
