"""Toy parts of Wan 2.1 and 2.2: text encoder, tokenizer, transformer, VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ._tiny import (
    TokenizerFiles,
    fill,
    scheduler,
    t5_tokenizer,
    t5_tokenizer_files,
    t5_vocabulary,
    write_json,
)

TEXT_WIDTH = 32
CLIP_SIZE = 224  # px
CLIP_WIDTH = 32


def wan_parts(seed: int, vae: dict[str, Any] | None = None, **transformer: Any) -> dict[str, Any]:
    """The parts of a toy Wan of one transformer. vae, transformer: on top of the toy sizes."""
    return {
        "tokenizer": umt5_tokenizer_files(),
        "text_encoder": umt5(seed),
        "transformer": wan_transformer(seed, **transformer),
        "vae": wan_vae(seed, **(vae or {})),
        "scheduler": scheduler(
            "UniPCMultistepScheduler",
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=3.0,
        ),
    }


def umt5(seed: int) -> torch.nn.Module:
    """A two-layer UMT5 encoder, 32 wide."""
    from transformers import UMT5Config, UMT5EncoderModel

    config: dict[str, Any] = {
        "vocab_size": len(t5_vocabulary()) + 8,
        "d_model": TEXT_WIDTH,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    return fill(UMT5EncoderModel(UMT5Config(**config)), seed)


def umt5_tokenizer_files() -> TokenizerFiles:
    """Writes a UMT5 tokenizer's files: T5's, with a normalizer as the released one has."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    tokenizer = t5_tokenizer()
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), "\u2581"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return t5_tokenizer_files(tokenizer)


def wan_transformer(seed: int, **config: Any) -> torch.nn.Module:
    """A Wan transformer of two blocks, 32 wide."""
    from diffusers import WanTransformer3DModel

    sizes = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "text_dim": TEXT_WIDTH,
        "freq_dim": 32,
        "ffn_dim": 64,
        "num_layers": 2,
        "rope_max_seq_len": 64,
    }
    return fill(WanTransformer3DModel(**{**sizes, **config}), seed)


def wan_vae(seed: int, **config: Any) -> torch.nn.Module:
    """A Wan 2.1 VAE of 16 channels and factor 8, 8 wide at its narrowest."""
    from diffusers import AutoencoderKLWan

    return fill(AutoencoderKLWan(**{"base_dim": 8, "num_res_blocks": 1, **config}), seed)


def clip_vision(seed: int) -> torch.nn.Module:
    """A three-layer CLIP vision encoder of 16 patches."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=CLIP_WIDTH,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=CLIP_SIZE,
        patch_size=CLIP_SIZE // 4,
        hidden_act="gelu",
    )
    return fill(CLIPVisionModel(config), seed)


def clip_image_processor_files() -> TokenizerFiles:
    """Writes the configuration of CLIP's image processor as released ones have it."""
    config = {
        "crop_size": {"height": CLIP_SIZE, "width": CLIP_SIZE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": CLIP_SIZE},
    }

    def write(folder: Path) -> None:
        write_json(folder / "preprocessor_config.json", config)

    return TokenizerFiles("CLIPImageProcessor", write)
