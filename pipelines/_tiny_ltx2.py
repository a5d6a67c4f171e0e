"""A toy LTX-2: Gemma 3, its connectors, the network for pictures and sound, VAEs, a vocoder."""

from __future__ import annotations

import zlib
from typing import Any

import torch

from ._tiny import fill, scheduler
from ._tiny_gemma import gemma_tokenizer_files, gemma_vocabulary

WIDTH = 32  # of the text encoder and the network
LAYERS = 6  # of the text encoder: five that look around, one that sees all
LATENTS = 128  # channels, as released
MEL_BINS = 16
SOUND = 2 * MEL_BINS  # channels of a sound latent: a quarter of the bins, eight of each
PERTURBED = 28  # the block that LTX-2.3 is guided by


def tiny_parts(seed: int, newer: bool) -> dict[str, Any]:
    """The parts of a toy LTX-2, or, if newer, of LTX-2.3; real classes."""
    return {
        "tokenizer": gemma_tokenizer_files(),
        "text_encoder": gemma3(seed),
        "connectors": _connectors(seed, newer),
        "transformer": _transformer(seed, newer),
        "vae": _video_vae(seed, newer),
        "audio_vae": _audio_vae(seed),
        "vocoder": _extending_vocoder(seed) if newer else _vocoder(seed),
        "scheduler": scheduler(
            "FlowMatchEulerDiscreteScheduler",
            use_dynamic_shifting=True,
            base_shift=0.95,
            max_shift=2.05,
            base_image_seq_len=1024,
            max_image_seq_len=4096,
            shift_terminal=0.1,
        ),
    }


def gemma3(seed: int) -> torch.nn.Module:
    """A Gemma 3 of six layers, 32 wide, with a vision tower that is read and dropped."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {
        "vocab_size": len(gemma_vocabulary()),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 64,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model: Any = fill(Gemma3ForConditionalGeneration(config), seed)
    fill(model.model.vision_tower, seed)  # by itself: transformers 5.8 and newer name it otherwise
    return model


def _connectors(seed: int, newer: bool) -> torch.nn.Module:
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

    own = {
        "video_gated_attn": True,
        "audio_gated_attn": True,
        "audio_connector_attention_head_dim": WIDTH // 4,
        "per_modality_projections": True,
        "video_hidden_dim": WIDTH,
        "audio_hidden_dim": WIDTH // 2,
        "proj_bias": True,
    }
    config: dict[str, Any] = {
        "caption_channels": WIDTH,
        "text_proj_in_factor": LAYERS + 1,
        "video_connector_num_attention_heads": 2,
        "video_connector_attention_head_dim": WIDTH // 2,
        "video_connector_num_layers": 1,
        "audio_connector_num_attention_heads": 2,
        "audio_connector_attention_head_dim": WIDTH // 2,
        "audio_connector_num_layers": 1,
        "rope_type": "split",
    }
    return fill(LTX2TextConnectors(**(config | (own if newer else {}))), seed)


def _transformer(seed: int, newer: bool) -> torch.nn.Module:
    from diffusers import LTX2VideoTransformer3DModel

    own: dict[str, Any] = {
        "gated_attn": True,
        "cross_attn_mod": True,
        "audio_gated_attn": True,
        "audio_cross_attn_mod": True,
        "use_prompt_embeddings": False,
        "perturbed_attn": True,
    }
    config: dict[str, Any] = {
        "in_channels": LATENTS,
        "out_channels": LATENTS,
        "num_attention_heads": 2,
        "attention_head_dim": WIDTH // 2,
        "cross_attention_dim": WIDTH,
        "audio_in_channels": SOUND,
        "audio_out_channels": SOUND,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": WIDTH // 4,
        "audio_cross_attention_dim": WIDTH // 2,
        "num_layers": PERTURBED + 1 if newer else 2,
        "caption_channels": WIDTH,
        "rope_type": "split",
    }
    return fill(LTX2VideoTransformer3DModel(**(config | (own if newer else {}))), seed)


def _video_vae(seed: int, newer: bool) -> torch.nn.Module:
    from diffusers import AutoencoderKLLTX2Video

    own = {
        "decoder_block_out_channels": (8, 16, 16, 32),
        "decoder_layers_per_block": (1,) * 5,
        "decoder_spatio_temporal_scaling": (True,) * 4,
        "decoder_inject_noise": (False,) * 5,
        "upsample_type": ("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        "upsample_residual": (False,) * 4,
        "upsample_factor": (2, 2, 1, 2),
        "decoder_spatial_padding_mode": "zeros",
    }
    config: dict[str, Any] = {
        "latent_channels": LATENTS,
        "block_out_channels": (8, 16, 16, 32),
        "decoder_block_out_channels": (8, 16, 32),
        "layers_per_block": (1,) * 5,
        "decoder_layers_per_block": (1,) * 4,
        "decoder_causal": False,
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    }
    vae = _filled(AutoencoderKLLTX2Video(**(config | (own if newer else {}))), seed)
    for parameter in vae.decoder.conv_out.parameters():
        patches = parameter.view(3, 16, -1)  # of 4 x 4 px, each of one colour: small as files
        patches[:, 1:] = patches[:, :1]
    return vae


def _audio_vae(seed: int) -> torch.nn.Module:
    from diffusers import AutoencoderKLLTX2Audio

    # as many channels as a sound latent, whose statistics it holds
    vae = AutoencoderKLLTX2Audio(
        base_channels=SOUND, ch_mult=(1, 1, 1), num_res_blocks=1, mel_bins=MEL_BINS
    )
    return _filled(vae, seed)


def _filled(module: Any, seed: int) -> Any:
    # with what a checkpoint holds beside parameters: statistics of latents, filters, bases of sound
    for name, buffer in module.named_buffers():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode(), seed))
        noise = torch.randn(buffer.shape, generator=generator)
        if name.endswith("latents_mean"):
            buffer.copy_(0.1 * noise)
        elif name.endswith("_basis"):
            buffer.copy_(0.3 * noise.abs() if name.endswith("mel_basis") else noise)
        elif not name.startswith("resampler"):  # which files do not hold
            buffer.mul_(1 + 0.1 * noise)
    return fill(module, seed)


def _vocoder(seed: int) -> torch.nn.Module:
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    vocoder = LTX2Vocoder(
        in_channels=2 * MEL_BINS,
        hidden_channels=16,
        upsample_kernel_sizes=[16, 10],
        upsample_factors=[8, 10],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3]],
        output_sampling_rate=8000,
    )
    return fill(vocoder, seed)


def _extending_vocoder(seed: int) -> torch.nn.Module:
    from diffusers.pipelines.ltx2.vocoder import LTX2VocoderWithBWE

    small: dict[str, Any] = {
        "in_channels": 2 * MEL_BINS,
        "hidden_channels": 16,
        "resnet_kernel_sizes": [3],
        "resnet_dilations": [[1, 3]],
    }
    vocoder = LTX2VocoderWithBWE(
        **small,
        **{f"bwe_{name}": value for name, value in small.items()},
        upsample_kernel_sizes=[16, 10],
        upsample_factors=[8, 5],
        bwe_upsample_kernel_sizes=[8, 12],
        bwe_upsample_factors=[4, 6],
        filter_length=32,
        hop_length=8,
        window_length=32,
        num_mel_channels=MEL_BINS,
        input_sampling_rate=4000,
        output_sampling_rate=12000,
    )
    _filled(vocoder, seed)
    vocoder.bwe_generator.conv_out.weight.mul_(0.1)  # or most of it would be cut off at 1
    return vocoder
