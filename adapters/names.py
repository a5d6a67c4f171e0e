"""How the layers of a file are named: prefix, separator, and names other than the module's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from ..core.bfl_names import CHROMA, FLUX2
from ..core.ltx2_names import NETWORK as LTX2
from ..core.released_names import KREA2

DENOISER = "denoiser"  # the part that is trained: a spec's unet or transformer
SOLE_ENCODER = "text_encoder_sole"  # the text encoder of models that have one only


@dataclass(frozen=True)
class Prefix:
    """A way to start a layer's name.

    part: DENOISER, SOLE_ENCODER, or the component. separator: what stands for the dots of a
    module path.
    """

    text: str
    part: str
    separator: str


PREFIXES = (
    Prefix("lora_unet_", DENOISER, "_"),
    Prefix("lora_transformer_", DENOISER, "_"),  # LoKr of 2024, other programs
    Prefix("lycoris_", DENOISER, "_"),  # LoKr in the trainer's old format
    Prefix("lora_te_", SOLE_ENCODER, "_"),
    Prefix("lora_te1_", "text_encoder", "_"),
    Prefix("lora_te2_", "text_encoder_2", "_"),
    Prefix("lora_te3_", "text_encoder_3", "_"),
    Prefix("lora_te.", SOLE_ENCODER, "."),
    Prefix("lora_te1.", "text_encoder", "."),
    Prefix("lora_te2.", "text_encoder_2", "."),
    Prefix("text_encoder.", "text_encoder", "."),
    Prefix("text_encoder_2.", "text_encoder_2", "."),
    Prefix("base_model.model.", DENOISER, "."),  # peft
    Prefix("diffusion_model.", DENOISER, "."),
    Prefix("transformer.", DENOISER, "."),
    Prefix("unet.", DENOISER, "."),
    Prefix("", DENOISER, "."),
)
EXPERT = re.compile(r"transformer_([12])[._]")  # of a file for both experts


@dataclass(frozen=True)
class LayerName:
    """A layer's name taken apart. expert: 0 high noise, 1 low noise, None if it does not say."""

    part: str
    separator: str
    path: str
    expert: int | None


def split_name(name: str) -> LayerName:
    """The parts of a layer's name in a file."""
    prefix = next(prefix for prefix in PREFIXES if name.startswith(prefix.text))
    path, expert = name[len(prefix.text) :], None
    if found := EXPERT.match(path):
        path, expert = path[found.end() :], int(found[1]) - 1
    return LayerName(prefix.part, prefix.separator, path, expert)


Rule = tuple[str, "str | Callable[[re.Match[str]], str]"]


def spellings(path: str, original: str = "") -> Iterator[tuple[str, int]]:
    """(name a file may have for a module path, which of the modules that share the name it is).

    original: a key of ORIGINAL, for models whose files have the names of the first release.
    Modules that share a name have the rows of one fused matrix, in this order.
    """
    yield path, 0
    seen = {path}
    for rules in ORIGINAL.get(original, ()):
        name = path
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        name, _, index = name.partition("#")
        if name not in seen:
            seen.add(name)
            yield name, int(index or 0)


# Wan. Upstream: ostris/ai-toolkit@27a03a91 toolkit/models/wan21/wan_lora_convert.py, and the
# names of the first release for what it leaves as it is.
WAN: tuple[Rule, ...] = (
    (r"\battn1\b", "self_attn"),
    (r"\battn2\b", "cross_attn"),
    (r"\bto_out\.0$", "o"),
    (r"\bto_([qkv])$", r"\1"),
    (r"\badd_([kv])_proj$", r"\1_img"),
    (r"\bnorm_added_k$", "norm_k_img"),
    (r"\bffn\.net\.0\.proj$", "ffn.0"),
    (r"\bffn\.net\.2$", "ffn.2"),
    (r"^(blocks\.\d+)\.norm2$", r"\1.norm3"),
    (r"^condition_embedder\.time_embedder\.linear_1$", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2$", "time_embedding.2"),
    (r"^condition_embedder\.text_embedder\.linear_1$", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2$", "text_embedding.2"),
    (r"^condition_embedder\.time_proj$", "time_projection.1"),
    (r"^condition_embedder\.image_embedder\.norm1$", "img_emb.proj.0"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj$", "img_emb.proj.1"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2$", "img_emb.proj.3"),
    (r"^condition_embedder\.image_embedder\.norm2$", "img_emb.proj.4"),
    (r"^proj_out$", "head.head"),
)

# What the trainer's rules leave of them where `_` stands for the dots: in its old LoKr format.
WAN_OLD_LOKR = tuple(rule for rule in WAN[:6] if "to_out" not in rule[0])

# The trainer renames this one twice.
LTX2_TWICE: tuple[Rule, ...] = ((r"^audio_prompt_adaln\b", "audio_prompt_adaln_single_single"),)

# FLUX.1 as Black Forest Labs released it, with fused projections.
# Upstream: huggingface/diffusers@c943837 src/diffusers/loaders/lora_conversion_utils.py
_DOUBLE = r"^transformer_blocks\.(\d+)\."
_SINGLE = r"^single_transformer_blocks\.(\d+)\."
BFL_FLUX: tuple[Rule, ...] = (
    *(
        (rf"{_DOUBLE}attn\.to_{c}$", rf"double_blocks.\1.img_attn.qkv#{i}")
        for i, c in enumerate("qkv")
    ),
    *(
        (rf"{_DOUBLE}attn\.add_{c}_proj$", rf"double_blocks.\1.txt_attn.qkv#{i}")
        for i, c in enumerate("qkv")
    ),
    (rf"{_DOUBLE}attn\.to_out\.0$", r"double_blocks.\1.img_attn.proj"),
    (rf"{_DOUBLE}attn\.to_add_out$", r"double_blocks.\1.txt_attn.proj"),
    (rf"{_DOUBLE}ff\.net\.0\.proj$", r"double_blocks.\1.img_mlp.0"),
    (rf"{_DOUBLE}ff\.net\.2$", r"double_blocks.\1.img_mlp.2"),
    (rf"{_DOUBLE}ff_context\.net\.0\.proj$", r"double_blocks.\1.txt_mlp.0"),
    (rf"{_DOUBLE}ff_context\.net\.2$", r"double_blocks.\1.txt_mlp.2"),
    (rf"{_DOUBLE}norm1\.linear$", r"double_blocks.\1.img_mod.lin"),
    (rf"{_DOUBLE}norm1_context\.linear$", r"double_blocks.\1.txt_mod.lin"),
    *((rf"{_SINGLE}attn\.to_{c}$", rf"single_blocks.\1.linear1#{i}") for i, c in enumerate("qkv")),
    (rf"{_SINGLE}proj_mlp$", r"single_blocks.\1.linear1#3"),
    (rf"{_SINGLE}proj_out$", r"single_blocks.\1.linear2"),
    (rf"{_SINGLE}norm\.linear$", r"single_blocks.\1.modulation.lin"),
    (r"^x_embedder$", "img_in"),
    (r"^context_embedder$", "txt_in"),
    (r"^time_text_embed\.timestep_embedder\.linear_1$", "time_in.in_layer"),
    (r"^time_text_embed\.timestep_embedder\.linear_2$", "time_in.out_layer"),
    (r"^time_text_embed\.text_embedder\.linear_1$", "vector_in.in_layer"),
    (r"^time_text_embed\.text_embedder\.linear_2$", "vector_in.out_layer"),
    (r"^time_text_embed\.guidance_embedder\.linear_1$", "guidance_in.in_layer"),
    (r"^time_text_embed\.guidance_embedder\.linear_2$", "guidance_in.out_layer"),
    (r"^proj_out$", "final_layer.linear"),
)


def _sgm_block(kind: str, found: re.Match[str]) -> str:
    # two resnets to a block, three in the up path; then its down- or upsampler
    block, index = int(found[1]), int(found[3])
    layers = {"resnets": 0, "attentions": 1}
    if kind == "input_blocks":
        if found[2] == "downsamplers":
            return f"{kind}.{3 * block + 3}.0.op"
        return f"{kind}.{3 * block + index + 1}.{layers[found[2]]}"
    if found[2] == "upsamplers":
        return f"{kind}.{3 * block + 2}.2.conv"
    return f"{kind}.{3 * block + index}.{layers[found[2]]}"


# SDXL as Stability AI released it, which kohya's files follow.
# Upstream: kohya-ss/sd-scripts library/sdxl_model_util.py
SGM: tuple[Rule, ...] = (
    (r"^down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)", partial(_sgm_block, "input_blocks")),
    (r"^down_blocks\.(\d+)\.(downsamplers)\.(0)\.conv$", partial(_sgm_block, "input_blocks")),
    (r"^up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)", partial(_sgm_block, "output_blocks")),
    (r"^up_blocks\.(\d+)\.(upsamplers)\.(0)\.conv$", partial(_sgm_block, "output_blocks")),
    (r"^mid_block\.resnets\.0", "middle_block.0"),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^mid_block\.resnets\.1", "middle_block.2"),
    (r"\bconv1$", "in_layers.2"),
    (r"\bconv2$", "out_layers.3"),
    (r"\btime_emb_proj$", "emb_layers.1"),
    (r"\bconv_shortcut$", "skip_connection"),
    (r"^conv_in$", "input_blocks.0.0"),
    (r"^conv_out$", "out.2"),
    (r"^time_embedding\.linear_1$", "time_embed.0"),
    (r"^time_embedding\.linear_2$", "time_embed.2"),
    (r"^add_embedding\.linear_1$", "label_emb.0.0"),
    (r"^add_embedding\.linear_2$", "label_emb.0.2"),
)

ORIGINAL: dict[str, tuple[tuple[Rule, ...], ...]] = {
    "wan": (WAN, WAN_OLD_LOKR),
    "ltx2": (LTX2, LTX2_TWICE),
    "bfl-flux": (BFL_FLUX,),
    "sgm": (SGM,),
    "krea2": (KREA2,),
    "flux2": (FLUX2,),
    "chroma": (CHROMA,),
}
