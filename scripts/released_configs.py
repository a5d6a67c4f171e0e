"""Counts the parameters of every model's parts, as released: docs/models/parameters.json.

    python scripts/released_configs.py [--check]

The classes are built on the meta device, so this needs no weights and next to no memory. --check
says what is stale. Numbers of a class that is not here (OmniGen2's is the trainer's own; see
AI_TOOLKIT_PATH) are kept.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from ai_toolkit_inference.core.errors import MissingDependencyError
from ai_toolkit_inference.pipelines._ltx2_files import LTX2, LTX23
from ai_toolkit_inference.pipelines._vendor import trainer_module

COUNTS = Path(__file__).resolve().parent.parent / "docs" / "models" / "parameters.json"


@dataclass(frozen=True)
class Part:
    """A component: its class as `library:name`, what its released configuration says beyond the
    class's defaults, and the submodule that is dropped after loading, if one is."""

    cls: str
    config: dict[str, Any] = field(default_factory=dict)
    dropped: str = ""


# fmt: off
CLIP_SHAPE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
              "num_attention_heads": 12, "vocab_size": 49408, "projection_dim": 768}
BIG_CLIP_SHAPE = CLIP_SHAPE | {"hidden_size": 1280, "intermediate_size": 5120,
                               "num_hidden_layers": 32, "num_attention_heads": 20,
                               "projection_dim": 1280}
CLIP_L = Part("transformers:CLIPTextModel", CLIP_SHAPE)
CLIP_G = Part("transformers:CLIPTextModelWithProjection", BIG_CLIP_SHAPE)
# Long CLIP, as the pipeline's limit of 218 tokens tells; the file itself was not seen.
LONG = {"max_position_embeddings": 248}
LONG_CLIP_L = Part("transformers:CLIPTextModelWithProjection", CLIP_SHAPE | LONG)
LONG_CLIP_G = Part("transformers:CLIPTextModelWithProjection", BIG_CLIP_SHAPE | LONG)
T5_XXL = Part("transformers:T5EncoderModel", {
    "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24,
    "vocab_size": 32128, "feed_forward_proj": "gated-gelu"})
UMT5_XXL = Part("transformers:UMT5EncoderModel", T5_XXL.config | {"vocab_size": 256384})
CLIP_H_VISION = Part("transformers:CLIPVisionModel", {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 16, "image_size": 224, "patch_size": 14})
LLAMA_8B = Part("transformers:LlamaForCausalLM", {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256})
GEMMA2_2B = Part("transformers:Gemma2Model", {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000})
GEMMA3_12B = Part("transformers:Gemma3ForConditionalGeneration", {
    "text_config": {
        "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
        "vocab_size": 262208},
    "vision_config": {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
        "num_attention_heads": 16, "image_size": 896, "patch_size": 14,
        "vision_use_head": False}}, dropped="model.vision_tower")
QWEN3_SHAPE = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
               "head_dim": 128, "vocab_size": 151936}
QWEN3_4B_SHAPE = QWEN3_SHAPE | {"hidden_size": 2560, "intermediate_size": 9728,
                                "tie_word_embeddings": True}
QWEN3_4B = Part("transformers:Qwen3Model", QWEN3_4B_SHAPE)
QWEN3_4B_LM = Part("transformers:Qwen3ForCausalLM", QWEN3_4B_SHAPE)
QWEN3_8B_LM = Part("transformers:Qwen3ForCausalLM", QWEN3_SHAPE | {
    "hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False})
QWEN25_VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
QWEN25_VL = "transformers:Qwen2_5_VLForConditionalGeneration"
QWEN25_VL_7B = Part(QWEN25_VL, {
    "text_config": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064},
    "vision_config": QWEN25_VISION | {"out_hidden_size": 3584},
    "tie_word_embeddings": False}, dropped="model.visual")
QWEN25_VL_3B = Part(QWEN25_VL, {
    "text_config": {
        "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 151936,
        "tie_word_embeddings": True},
    "vision_config": QWEN25_VISION | {"out_hidden_size": 2048},
    "tie_word_embeddings": True}, dropped="model.visual")
QWEN3_VL_4B = Part("transformers:Qwen3VLModel", {
    "text_config": QWEN3_4B_SHAPE | {"rope_scaling": {
        "rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True}},
    "vision_config": {
        "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
        "out_hidden_size": 2560, "deepstack_visual_indexes": [5, 11, 17]},
    "tie_word_embeddings": True}, dropped="visual")
MISTRAL_24B = Part("transformers:Mistral3ForConditionalGeneration", {  # the class's own defaults
    "tie_word_embeddings": False})

VAE_SHAPE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
             "down_block_types": ("DownEncoderBlock2D",) * 4,
             "up_block_types": ("UpDecoderBlock2D",) * 4}
SD_VAE = Part("diffusers:AutoencoderKL", VAE_SHAPE | {"latent_channels": 4})
FLUX_VAE = Part("diffusers:AutoencoderKL", VAE_SHAPE | {
    "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False})
FLUX2_VAE = Part("diffusers:AutoencoderKLFlux2")
QWEN_VAE = Part("diffusers:AutoencoderKLQwenImage")
WAN_VAE = Part("diffusers:AutoencoderKLWan")
WAN22_VAE = Part("diffusers:AutoencoderKLWan", {
    "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True,
    "in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 16})

SD15_UNET = Part("diffusers:UNet2DConditionModel", {
    "cross_attention_dim": 768, "attention_head_dim": 8})
SDXL_UNET = Part("diffusers:UNet2DConditionModel", {
    "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816})
FLUX = Part("diffusers:FluxTransformer2DModel", {"guidance_embeds": True})
FLUX_SCHNELL = Part("diffusers:FluxTransformer2DModel", {"guidance_embeds": False})
FLEX_SHAPE = FLUX.config | {"num_layers": 8, "num_single_layers": 38}
FLEX1 = Part("diffusers:FluxTransformer2DModel", FLEX_SHAPE)
FLEX2 = Part("diffusers:FluxTransformer2DModel", FLEX_SHAPE | {
    "in_channels": 196, "out_channels": 64})
WAN_14B = Part("diffusers:WanTransformer3DModel")  # the class's own defaults
WAN_1B = Part(WAN_14B.cls, {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30})
WAN22_I2V = Part(WAN_14B.cls, {"in_channels": 36})
WAN22_5B = Part(WAN_14B.cls, {
    "num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30,
    "in_channels": 48, "out_channels": 48})
WAN_I2V = Part(WAN_14B.cls, {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120})
FLUX2_NETWORK = Part("diffusers:Flux2Transformer2DModel")
KLEIN_4B = Part("diffusers:Flux2Transformer2DModel", {
    "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24,
    "joint_attention_dim": 7680, "guidance_embeds": False})
KLEIN_9B = Part("diffusers:Flux2Transformer2DModel", {
    "num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32,
    "joint_attention_dim": 12288, "guidance_embeds": False})
Z_IMAGE = Part("diffusers:ZImageTransformer2DModel")
QWEN_IMAGE = Part("diffusers:QwenImageTransformer2DModel")
LUMINA2 = Part("diffusers:Lumina2Transformer2DModel", {"cap_feat_dim": 2304})
CHROMA = Part("diffusers:ChromaTransformer2DModel")
KREA2 = Part("diffusers:Krea2Transformer2DModel")
HIDREAM = Part("diffusers:HiDreamImageTransformer2DModel", {
    "patch_size": 2, "in_channels": 16, "caption_channels": [4096, 4096],
    "axes_dims_rope": [64, 32, 32], "llama_layers": [*range(32), *[31] * 16]})
OMNIGEN2 = Part(
    "extensions_built_in.diffusion_models.omnigen2.src.models.transformers.transformer_omnigen2"
    ":OmniGen2Transformer2DModel", {
        "hidden_size": 2520, "num_layers": 32, "num_refiner_layers": 2,
        "num_attention_heads": 21, "num_kv_heads": 7, "axes_dim_rope": (40, 40, 40),
        "axes_lens": (1024, 1664, 1664), "text_feat_dim": 2048, "timestep_scale": 1000.0})
# fmt: on


def flux_parts(network: Part) -> dict[str, Part]:
    return {
        "text_encoder": CLIP_L,
        "text_encoder_2": T5_XXL,
        "transformer": network,
        "vae": FLUX_VAE,
    }


def parts(encoder: Part, network: Part, vae: Part) -> dict[str, Part]:
    return {"text_encoder": encoder, "transformer": network, "vae": vae}


def ltx2_parts(configs: dict[str, dict[str, Any]], vocoder: str) -> dict[str, Part]:
    folder = "diffusers.pipelines.ltx2"
    return {
        "text_encoder": GEMMA3_12B,
        "connectors": Part(f"{folder}.connectors:LTX2TextConnectors", configs["connectors"]),
        "transformer": Part("diffusers:LTX2VideoTransformer3DModel", configs["transformer"]),
        "vae": Part("diffusers:AutoencoderKLLTX2Video", configs["vae"]),
        "audio_vae": Part("diffusers:AutoencoderKLLTX2Audio", configs["audio_vae"]),
        "vocoder": Part(f"{folder}.vocoder:{vocoder}", configs["vocoder"]),
    }


Z_IMAGE_PARTS = parts(QWEN3_4B, Z_IMAGE, FLUX_VAE)
QWEN_IMAGE_PARTS = parts(QWEN25_VL_7B, QWEN_IMAGE, QWEN_VAE)
QWEN_EDIT_PARTS = parts(replace(QWEN25_VL_7B, dropped=""), QWEN_IMAGE, QWEN_VAE)
FLUX2_PARTS = parts(MISTRAL_24B, FLUX2_NETWORK, FLUX2_VAE)
KREA2_PARTS = parts(QWEN3_VL_4B, KREA2, QWEN_VAE)
WAN_I2V_PARTS = parts(UMT5_XXL, WAN_I2V, WAN_VAE) | {"image_encoder": CLIP_H_VISION}
KREA2_EDIT_PARTS = parts(replace(QWEN3_VL_4B, dropped=""), KREA2, QWEN_VAE)
HIDREAM_PARTS = {
    "text_encoder": LONG_CLIP_L,
    "text_encoder_2": LONG_CLIP_G,
    "text_encoder_3": T5_XXL,
    "text_encoder_4": LLAMA_8B,
    "transformer": HIDREAM,
    "vae": FLUX_VAE,
}
# model id -> its components
RELEASED: dict[str, dict[str, Part]] = {
    "sd15": {"text_encoder": CLIP_L, "unet": SD15_UNET, "vae": SD_VAE},
    "sdxl": {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "unet": SDXL_UNET, "vae": SD_VAE},
    "flux": flux_parts(FLUX),
    "flux_schnell": flux_parts(FLUX_SCHNELL),
    "flex1": flux_parts(FLEX1),
    "flex2": flux_parts(FLEX2),
    "flux_kontext": flux_parts(FLUX),
    "zimage": Z_IMAGE_PARTS,
    "zimage_turbo": Z_IMAGE_PARTS,
    "zimage_deturbo": Z_IMAGE_PARTS,
    "qwen_image": QWEN_IMAGE_PARTS,
    "qwen_image_2512": QWEN_IMAGE_PARTS,
    "qwen_image_edit": QWEN_EDIT_PARTS,
    "qwen_image_edit_plus": QWEN_EDIT_PARTS,
    "qwen_image_edit_plus_2511": QWEN_EDIT_PARTS,
    "lumina2": parts(GEMMA2_2B, LUMINA2, FLUX_VAE),
    "chroma": parts(T5_XXL, CHROMA, FLUX_VAE),
    "hidream": HIDREAM_PARTS,
    "hidream_e1": HIDREAM_PARTS,
    "omnigen2": {"mllm": QWEN25_VL_3B, "transformer": OMNIGEN2, "vae": FLUX_VAE},
    "flux2": FLUX2_PARTS,
    "flux2_diffusers": FLUX2_PARTS,
    "ltx2": ltx2_parts(LTX2, "LTX2Vocoder"),
    "ltx2.3": ltx2_parts(LTX23, "LTX2VocoderWithBWE"),
    "flux2_klein_4b": parts(QWEN3_4B_LM, KLEIN_4B, FLUX2_VAE),
    "flux2_klein_9b": parts(QWEN3_8B_LM, KLEIN_9B, FLUX2_VAE),
    "wan21_1b": parts(UMT5_XXL, WAN_1B, WAN_VAE),
    "wan21_14b": parts(UMT5_XXL, WAN_14B, WAN_VAE),
    "wan21_i2v_14b": WAN_I2V_PARTS,
    "wan21_i2v_14b480p": WAN_I2V_PARTS,
    "wan22_14b_t2v": parts(UMT5_XXL, WAN_14B, WAN_VAE) | {"transformer_2": WAN_14B},
    "wan22_14b_i2v": parts(UMT5_XXL, WAN22_I2V, WAN_VAE) | {"transformer_2": WAN22_I2V},
    "wan22_5b": parts(UMT5_XXL, WAN22_5B, WAN22_VAE),
    "krea2": KREA2_PARTS,
    "krea2_turbo": KREA2_PARTS,
    "krea2_o_edit": KREA2_EDIT_PARTS,
    "krea2_o_edit_turbo": KREA2_EDIT_PARTS,
}


def count(part: Part) -> dict[str, Any]:
    """The class of a part, its parameters as kept, and those dropped after loading."""
    return _count(part.cls, json.dumps(part.config), part.dropped)


@cache
def _count(cls: str, config: str, dropped: str) -> dict[str, Any]:
    import torch

    module_class = _class(cls)  # libraries make tensors while they are imported
    with torch.device("meta"):
        module = _build(module_class, json.loads(config))
    unused = sum(p.numel() for p in module.get_submodule(dropped).parameters()) if dropped else 0
    kept = sum(parameter.numel() for parameter in module.parameters()) - unused
    entry = {"class": cls.rpartition(":")[2], "parameters": kept}
    return entry | ({"dropped": unused} if dropped else {})


def _class(cls: str) -> Any:
    library, _, name = cls.partition(":")
    trainers = library.split(".")[0] not in ("diffusers", "transformers")
    module = trainer_module(library) if trainers else importlib.import_module(library)
    return getattr(module, name)


def _build(module_class: Any, config: dict[str, Any]) -> Any:
    if not module_class.__module__.startswith("transformers."):
        return module_class(**config)
    return module_class(module_class.config_class(**config))


def all_counts(known: dict[str, Any]) -> dict[str, Any]:
    """Model id -> component -> count. known: what is kept of classes that are not here."""
    counts: dict[str, Any] = {}
    for model, components in RELEASED.items():
        counts[model] = {}
        for name, part in components.items():
            try:
                counts[model][name] = count(part)
            except MissingDependencyError:
                counts[model][name] = known[model][name]
    return counts


def main() -> int:
    old = COUNTS.read_text(encoding="utf-8") if COUNTS.is_file() else "{}"
    new = json.dumps(all_counts(json.loads(old)), indent=1) + "\n"
    if "--check" in sys.argv:
        say = f"{COUNTS.name} is stale; run python scripts/released_configs.py\n"
        sys.stdout.write("" if new == old else say)
        return int(new != old)
    COUNTS.parent.mkdir(parents=True, exist_ok=True)
    COUNTS.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
