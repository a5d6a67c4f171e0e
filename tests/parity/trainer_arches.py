"""What `trainer_layouts.py` makes tables of: the trainer's architectures and kinds of network.

Run by the trainer's interpreter; imports nothing of this package. Widths are the released ones.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

EXTENSIONS = "extensions_built_in.diffusion_models"


@dataclass(frozen=True)
class Arch:
    """One architecture: the trainer's name of it, and its transformer or UNet as `build()`."""

    name: str
    arch: str
    build: Callable[[], Any]
    networks: tuple[str, ...] = ("lora", "lokr", "lokr-old")
    encoders: Callable[[], Any] = list


LORA = {"type": "lora", "linear": 4, "linear_alpha": 4}
LOKR = {"type": "lokr", "linear": 4, "linear_alpha": 4}
NETWORKS = {
    "lora": LORA,
    "conv": LORA | {"conv": 4, "conv_alpha": 4},
    "te": LORA,
    "lokr": LOKR | {"lokr_full_rank": True},
    "lokr-factored": LOKR | {"lokr_full_rank": False},
    "lokr-old": LOKR | {"lokr_full_rank": True, "old_lokr_format": True},
    "dora": LORA | {"type": "dora"},
    "fullrank": LORA | {"type": "fullrank"},
    "locon": LORA | {"type": "locon", "conv": 4, "conv_alpha": 4},
    "diff": LORA | {"all_layers": True, "network_kwargs": {"full_if_contains": ["to_q", "attn.q"]}},
    "combined": LORA | {"split_multistage_loras": False},
    "outer": LORA | {"transformer_only": False},  # the layers outside the blocks too
}
ALL_KINDS = ("lora", "lokr", "lokr-factored", "lokr-old", "dora", "fullrank", "diff")


def symbol(path: str) -> Any:
    """What `package.module:name` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def make(path: str, **arguments) -> Callable[[], Any]:
    """A maker of one object of a class named as `symbol` takes it."""
    return lambda: symbol(path)(**arguments)


def make_from(path: str, parameters: str, **values) -> Callable[[], Any]:
    """The same for a class whose one argument is an object of the trainer's settings class."""
    return lambda: symbol(path)(symbol(parameters)(**values))


def wan(heads: int, ffn: int, **values) -> Callable[[], Any]:
    """A maker of a Wan transformer of one block."""
    values |= {"num_layers": 1, "num_attention_heads": heads, "ffn_dim": ffn}
    return make("diffusers:WanTransformer3DModel", **values)


def dual_wan() -> Any:
    """Both experts of Wan 2.2 14B in the trainer's wrapper."""
    wrapper = symbol(f"{EXTENSIONS}.wan22.wan22_14b_model:DualWanTransformer3DModel")
    return wrapper(transformer_1=wan(40, 13824)(), transformer_2=wan(40, 13824)())


def chroma() -> Any:
    """Chroma, whose settings are one object that the trainer changes in place."""
    module = importlib.import_module(f"{EXTENSIONS}.chroma.src.model")
    module.chroma_params.depth = module.chroma_params.depth_single_blocks = 1
    return module.Chroma(module.chroma_params)


def ltx2(*version: str) -> Callable[[], Any]:
    """A maker of LTX-2 with the settings in the trainer's converter (0.7.19 has 2.0 only)."""

    def build():
        module = importlib.import_module(f"{EXTENSIONS}.ltx2.convert_ltx2_to_diffusers")
        get_config = module.get_ltx2_transformer_config
        known = version if get_config.__defaults__ else ()
        config = get_config(*known)[0]["diffusers_config"]
        return module.LTX2VideoTransformer3DModel.from_config(config | {"num_layers": 1})

    return build


def krea2() -> Any:
    """Krea 2 with the settings in the trainer's plug-in."""
    package = f"{EXTENSIONS}.krea2"
    settings = symbol(f"{package}.krea2:KREA2_MMDIT_CONFIG") | {"layers": 1}
    config = symbol(f"{package}.src.mmdit:SingleMMDiTConfig")(**settings)
    return symbol(f"{package}.src.mmdit:SingleStreamDiT")(config)


def clip(cls: str, width: int, heads: int) -> Any:
    """A CLIP text encoder of one layer."""
    transformers = importlib.import_module("transformers")
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}
    return getattr(transformers, cls)(transformers.CLIPTextConfig(num_hidden_layers=1, **sizes))


def clip_l() -> Any:
    """The encoder of SD 1.5, SDXL and FLUX.1."""
    return clip("CLIPTextModel", 768, 12)


def sdxl_encoders() -> list:
    return [clip_l(), clip("CLIPTextModelWithProjection", 1280, 20)]


def flux_encoders() -> list:
    transformers = importlib.import_module("transformers")
    config = transformers.T5Config(d_model=4096, d_ff=10240, num_heads=64, num_layers=1)
    return [clip_l(), transformers.T5EncoderModel(config)]


def klein(size: str) -> Callable[[], Any]:
    """A maker of FLUX.2 Klein."""
    package = f"{EXTENSIONS}.flux2.src.model"
    return make_from(
        f"{package}:Flux2", f"{package}:Klein{size}Params", depth=1, depth_single_blocks=1
    )


def flux(**values) -> Callable[[], Any]:
    """A maker of a FLUX.1 transformer."""
    return make("diffusers:FluxTransformer2DModel", num_layers=1, num_single_layers=1, **values)


# fmt: off
HIDREAM = {
    "patch_size": 2, "in_channels": 16, "num_layers": 1, "num_single_layers": 1,
    "num_routed_experts": 2, "caption_channels": [4096, 4096], "axes_dims_rope": [64, 32, 32],
    "llama_layers": [0, 1],
}
OMNIGEN2 = {
    "hidden_size": 2520, "num_layers": 1, "num_refiner_layers": 1, "num_attention_heads": 21,
    "num_kv_heads": 7, "axes_dim_rope": (40, 40, 40), "axes_lens": (1024, 1664, 1664),
    "text_feat_dim": 2048, "timestep_scale": 1000.0,
}
SDXL = {
    "block_out_channels": (320, 640, 1280), "layers_per_block": 1, "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20), "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
WAN_I2V = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}
FLUX2 = f"{EXTENSIONS}.flux2.src.model"
MINIMAX = f"{EXTENSIONS}.minimax_h3.src.transformer"
HIDREAM_CLASS = f"{EXTENSIONS}.hidream.src.models.transformers.transformer_hidream_image"
OMNIGEN2_CLASS = f"{EXTENSIONS}.omnigen2.src.models.transformers.transformer_omnigen2"

ARCHES = (
    Arch("sd15", "sd1",
         make("diffusers:UNet2DConditionModel", cross_attention_dim=768, layers_per_block=1),
         ("lora", "te", "lokr", "diff"), clip_l),
    Arch("sdxl", "sdxl", make("diffusers:UNet2DConditionModel", **SDXL),
         ("lora", "conv", "te", "locon", "dora"), sdxl_encoders),
    Arch("flux", "flux", flux(guidance_embeds=True), (*ALL_KINDS, "outer", "te"), flux_encoders),
    Arch("flux_kontext", "flux_kontext", flux(guidance_embeds=True)),
    Arch("flex2", "flex2", flux(in_channels=196, out_channels=64, guidance_embeds=True)),
    Arch("chroma", "chroma", chroma),
    Arch("lumina2", "lumina2",
         make("diffusers:Lumina2Transformer2DModel", num_layers=1, num_refiner_layers=1,
              cap_feat_dim=2304)),
    Arch("hidream", "hidream", make(f"{HIDREAM_CLASS}:HiDreamImageTransformer2DModel", **HIDREAM),
         ("lora", "lokr-old")),
    Arch("hidream_e1", "hidream_e1", make("diffusers:HiDreamImageTransformer2DModel", **HIDREAM),
         ("lora", "lokr-old")),
    Arch("omnigen2", "omnigen2", make(f"{OMNIGEN2_CLASS}:OmniGen2Transformer2DModel", **OMNIGEN2)),
    Arch("qwen_image", "qwen_image", make("diffusers:QwenImageTransformer2DModel", num_layers=1),
         (*ALL_KINDS, "outer")),
    Arch("zimage", "zimage",
         make("diffusers:ZImageTransformer2DModel", n_layers=1, n_refiner_layers=1)),
    Arch("wan21_1b", "wan21", wan(12, 8960), ALL_KINDS),
    Arch("wan21_14b", "wan21", wan(40, 13824)),
    Arch("wan21_i2v_14b", "wan21_i2v", wan(40, 13824, **WAN_I2V),
         ("lora", "lokr", "lokr-old", "outer")),
    Arch("wan22_14b", "wan22_14b", dual_wan, ("lora", "combined", "lokr", "lokr-old")),
    Arch("wan22_5b", "wan22_5b", wan(24, 14336, in_channels=48, out_channels=48)),
    Arch("flux2", "flux2",
         make_from(f"{FLUX2}:Flux2", f"{FLUX2}:Flux2Params", depth=1, depth_single_blocks=1)),
    Arch("flux2_klein_4b", "flux2_klein_4b", klein("4B"), ("lora",)),
    Arch("flux2_klein_9b", "flux2_klein_9b", klein("9B")),
    Arch("ltx2", "ltx2", ltx2("2.0")),
    Arch("ltx2.3", "ltx2.3", ltx2("2.3"), ("lora", "outer")),
    Arch("krea2", "krea2", krea2, ("lora",)),
    Arch("minimax_h3", "minimax_h3",
         make_from(f"{MINIMAX}:MiniMaxH3Transformer", f"{MINIMAX}:MiniMaxH3TransformerParams",
                   num_layers=1, token_refiner_num_layers=1)),
)
# fmt: on
