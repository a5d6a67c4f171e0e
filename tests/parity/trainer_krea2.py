"""A toy Krea 2 as the trainer wants it: the network in one file, the text encoder in one folder.

Used by `trainer_run.py`, inside the trainer's interpreter; imports nothing of this package.
"""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

WHOLE = {
    "img_in": "first",
    "time_embed.linear_1": "tmlp.0",
    "time_embed.linear_2": "tmlp.2",
    "time_mod_proj": "tproj.1",
    "txt_in.linear_1": "txtmlp.1",
    "txt_in.linear_2": "txtmlp.3",
    "final_layer.linear": "last.linear",
}
PARAMETERS = {
    "txt_in.norm.weight": "txtmlp.0.scale",
    "final_layer.norm.weight": "last.norm.scale",
    "final_layer.scale_shift_table": "last.modulation.lin",
    "text_fusion.projector.weight": "txtfusion.projector.weight",
}
BLOCKS = {
    "transformer_blocks": "blocks",
    "text_fusion.layerwise_blocks": "txtfusion.layerwise_blocks",
    "text_fusion.refiner_blocks": "txtfusion.refiner_blocks",
}
IN_BLOCKS = {
    "scale_shift_table": "mod.lin",
    "norm1.weight": "prenorm.scale",
    "norm2.weight": "postnorm.scale",
    "attn.norm_q.weight": "attn.qknorm.qnorm.scale",
    "attn.norm_k.weight": "attn.qknorm.knorm.scale",
    "attn.to_q.weight": "attn.wq.weight",
    "attn.to_k.weight": "attn.wk.weight",
    "attn.to_v.weight": "attn.wv.weight",
    "attn.to_out.0.weight": "attn.wo.weight",
    "attn.to_gate.weight": "attn.gate.weight",
    "ff.gate.weight": "mlp.gate.weight",
    "ff.up.weight": "mlp.up.weight",
    "ff.down.weight": "mlp.down.weight",
}
SIZES = {
    "tdim": "timestep_embed_dim",
    "txtdim": "text_hidden_dim",
    "heads": "num_attention_heads",
    "kvheads": "num_key_value_heads",
    "layers": "num_layers",
    "txtheads": "text_num_attention_heads",
    "txtkvheads": "text_num_key_value_heads",
    "txtlayers": "num_text_layers",
}


def released(name: str) -> str:
    """The trainer's name of a parameter of diffusers' network."""
    for block, trainers in BLOCKS.items():
        if name.startswith(f"{block}."):
            number, _, rest = name.removeprefix(f"{block}.").partition(".")
            return f"{trainers}.{number}.{IN_BLOCKS[rest]}"
    module, _, leaf = name.rpartition(".")
    return PARAMETERS.get(name) or f"{WHOLE[module]}.{leaf}"


# the vision side of Qwen/Qwen3-VL-4B-Instruct, as released
PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "processor_class": "Qwen3VLProcessor",
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
EDIT = {"edit": True, "match_target_res": True, "kv_cache": True}  # the UI's, of the edit variants


def model_settings(job: dict, folder: str) -> dict:
    """The job's `model` section; its files are put under `folder`."""
    checkpoint, network, encoder = Path(job["checkpoint"]), Path(folder, "dit"), Path(folder, "te")
    network.mkdir(parents=True, exist_ok=True)
    tensors = load_file(checkpoint / "transformer" / "diffusion_pytorch_model.safetensors")
    trainers = {released(name): tensor for name, tensor in tensors.items()}
    for name, tensor in trainers.items():
        trainers[name] = tensor.flatten() if name.endswith("mod.lin") else tensor
    save_file(trainers, network / "raw.safetensors")
    for part in ("tokenizer", "text_encoder"):
        shutil.copytree(checkpoint / part, encoder, dirs_exist_ok=True)
    (encoder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
    config = json.loads((checkpoint / "transformer" / "config.json").read_text())
    sizes = {trainers: config[ours] for trainers, ours in SIZES.items()}
    sizes["features"] = config["attention_head_dim"] * config["num_attention_heads"]
    return {
        "name_or_path": str(network),
        "model_kwargs": {
            "text_encoder_path": str(encoder),
            "vae_path": str(checkpoint),
            "mmdit_config": sizes,
            **(EDIT if "o_edit" in job["arch"] else {}),
        },
    }
