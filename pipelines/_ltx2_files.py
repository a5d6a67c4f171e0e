"""LTX-2 read from folders, and from one file of a first release with all but its text encoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..core.errors import CheckpointError
from ..core.ltx2_names import AUDIO_VAE, CONNECTORS, NETWORK, VIDEO_VAE, VOCODER
from ..core.released_names import released
from ..core.specs import ModelSpec

NETWORK_PREFIX = "model.diffusion_model."
CONNECTORS_START = (
    "connectors.", "video_embeddings_connector.", "audio_embeddings_connector.",
    "text_embedding_projection.",
)  # fmt: skip
# component -> (how its tensors' names start in a file, rules for what follows)
IN_FILE = {
    "transformer": (NETWORK_PREFIX, NETWORK),
    "connectors": (NETWORK_PREFIX, CONNECTORS),
    "vae": ("vae.", VIDEO_VAE),
    "audio_vae": ("audio_vae.", AUDIO_VAE),
    "vocoder": ("vocoder.", VOCODER),
}
# statistics that nothing uses
UNUSED = ("per_channel_statistics.channel", "per_channel_statistics.mean-of-stds")
# What was released, beyond the defaults of the classes.
# Upstream: ostris/ai-toolkit@27a03a91
# extensions_built_in/diffusion_models/ltx2/convert_ltx2_to_diffusers.py
# fmt: off
_VOCODER = {
    "act_fn": "snakebeta", "antialias": True, "final_act_fn": None, "final_bias": False,
}
_SPLIT = {"rope_type": "split"}
_RATIOS = {
    "decoder_causal": False, "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
}
LTX2: dict[str, dict[str, Any]] = {
    "transformer": _SPLIT, "connectors": _SPLIT, "vae": _RATIOS, "audio_vae": {}, "vocoder": {},
}
LTX23: dict[str, dict[str, Any]] = {
    "transformer": _SPLIT | {
        "gated_attn": True, "cross_attn_mod": True,
        "audio_gated_attn": True, "audio_cross_attn_mod": True, "use_prompt_embeddings": False,
        "perturbed_attn": True,
    },
    "connectors": _SPLIT | {
        "video_connector_num_attention_heads": 32, "video_connector_num_layers": 8,
        "video_gated_attn": True, "audio_connector_num_attention_heads": 32,
        "audio_connector_attention_head_dim": 64, "audio_connector_num_layers": 8,
        "audio_gated_attn": True, "per_modality_projections": True, "proj_bias": True,
    },
    "vae": _RATIOS | {
        "block_out_channels": (256, 512, 1024, 1024), "layers_per_block": (4, 6, 4, 2, 2),
        "decoder_block_out_channels": (256, 512, 512, 1024),
        "decoder_layers_per_block": (4, 6, 4, 2, 2),
        "decoder_spatio_temporal_scaling": (True,) * 4, "decoder_inject_noise": (False,) * 5,
        "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        "upsample_residual": (False,) * 4, "upsample_factor": (2, 2, 1, 2),
        "decoder_spatial_padding_mode": "zeros",
    },
    "audio_vae": {},
    "vocoder": _VOCODER | {f"bwe_{name}": value for name, value in _VOCODER.items()},
}
# fmt: on


def part_classes(spec: ModelSpec) -> dict[str, Any]:
    """Component -> class, of all but the text encoder."""
    import diffusers
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder, LTX2VocoderWithBWE

    return {
        "transformer": diffusers.LTX2VideoTransformer3DModel,
        "connectors": LTX2TextConnectors,
        "vae": diffusers.AutoencoderKLLTX2Video,
        "audio_vae": diffusers.AutoencoderKLLTX2Audio,
        "vocoder": LTX2VocoderWithBWE if spec.arch == "ltx2.3" else LTX2Vocoder,
    }


def read_ltx2(
    spec: ModelSpec, source: Path, dtype: torch.dtype, folder: Path | None = None
) -> dict[str, Any]:
    """The parts of a checkpoint, on the CPU, without the vision tower that nothing needs.

    source: a folder; or a file with all but the text encoder, which is in `folder`, else where
    the spec says.
    """
    from ._loading import part_path
    from ._ltx2 import connect_as_trainer, pipeline_class

    pipeline_class()  # refuses before anything is read
    rest = folder or source
    if source.is_file():
        parts = _read_file(spec, source, folder, dtype)
    else:
        reading: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True}
        parts = {
            name: build.from_pretrained(str(source), subfolder=name, **reading)
            for name, build in part_classes(spec).items()
        }
    connect_as_trainer(parts["connectors"])
    return parts | {
        "tokenizer": _read_tokenizer(part_path(spec, rest, "tokenizer")),
        "text_encoder": _read_gemma3(part_path(spec, rest, "text_encoder"), dtype),
    }


def _read_gemma3(path: str, dtype: torch.dtype) -> Any:
    # of a folder or a repository
    from transformers import Gemma3ForConditionalGeneration

    from ._text import encoder_config

    model = Gemma3ForConditionalGeneration.from_pretrained(
        path, config=encoder_config(path), torch_dtype=dtype, use_safetensors=True
    )
    model.model.vision_tower = None
    return model


def _read_tokenizer(path: str) -> Any:
    import transformers

    build: Any = transformers.GemmaTokenizerFast  # type: ignore[attr-defined]
    return build.from_pretrained(path)


# --- one file --------------------------------------------------------------------------------


def _read_file(
    spec: ModelSpec, file: Path, folder: Path | None, dtype: torch.dtype
) -> dict[str, Any]:
    # configurations: of the folder, else the released ones
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        stored = {name: list(_parted(opened.keys(), name)) for name in IN_FILE}
        parts = {}
        for name, build in part_classes(spec).items():
            module = _empty(spec, build, folder, name)
            names = _names(spec, file, name, module, dict(stored[name]))
            tensors = {path: opened.get_tensor(found).to(dtype) for path, found in names.items()}
            module.load_state_dict(tensors, assign=True)
            parts[name] = module
    return parts


def _empty(spec: ModelSpec, build: Any, folder: Path | None, name: str) -> Any:
    from accelerate import init_empty_weights

    known = folder is not None and (folder / name / "config.json").is_file()
    with init_empty_weights():
        if known:
            return build.from_config(build.load_config(str(folder), subfolder=name))
        return build(**(LTX23 if spec.arch == "ltx2.3" else LTX2)[name])


def _parted(names: Any, component: str) -> Iterator[tuple[str, str]]:
    # (name without what it starts with, name) of a component's tensors
    prefix = IN_FILE[component][0]
    for name in names:
        inner = name.removeprefix(prefix)
        connects = inner.startswith(CONNECTORS_START)
        if component == "connectors" and connects:
            yield inner.removeprefix("connectors."), name
        elif component != "connectors" and name.startswith(prefix) and not connects:
            yield inner, name


def _names(
    spec: ModelSpec, file: Path, component: str, module: Any, stored: dict[str, str]
) -> dict[str, str]:
    # parameter or buffer -> its tensor in the file
    rules = IN_FILE[component][1]
    wanted = {released(path, rules): path for path in module.state_dict()}
    missing = sorted(wanted.keys() - stored)
    strange = sorted(name for name in stored.keys() - wanted if not name.startswith(UNUSED))
    if missing or strange:
        raise CheckpointError(
            f"{file} is not {spec.title} as released: of its {component} {len(missing)} tensors "
            f"are missing, {len(strange)} are unknown ({', '.join([*missing, *strange][:3])})"
        )
    return {path: stored[name] for name, path in wanted.items()}
