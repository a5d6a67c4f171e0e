"""Which model an adapter file was made for, from the names and widths of its layers alone.

A file becomes one text with a line for each kind of layer: its name with `_` for dots and N for
numbers, and the width of its input, e.g. `_transformer_blocks_N_attn_to_q_=3072_`. A pattern of
the table is a run of whole words of such a line; "=3072" can only be its end. So a prefix or a
missing part of a file changes nothing, and the search is one of plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .endings import split_key

# Parts of a layer whose second side is the width of its input, or a factor of that.
SIZED = ("down", "diff", "w1", "w2", "w2_b")
LONGEST_KEY = 200
NUMBER = re.compile(r"(?<=_)\d+(?=_)")


@dataclass(frozen=True)
class Layout:
    """One family of layer names.

    models: ids of the models whose files look like this. patterns: one of them is enough.
    without: none of them may be there.
    """

    id: str
    title: str
    models: tuple[str, ...]
    patterns: tuple[str, ...]
    without: tuple[str, ...] = ()

    def matches(self, text: str) -> bool:
        """Whether a file with this text, as `describe` gives it, looks like this."""
        return _any_in(self.patterns, text) and not _any_in(self.without, text)


def detect_layout(shapes: Mapping[str, Sequence[int]]) -> Layout | None:
    """The layout of a file with these tensors; None if it has none of them, or several."""
    text = describe(shapes)
    found = [layout for layout in LAYOUTS if layout.matches(text)]
    return found[0] if len(found) == 1 else None


def describe(shapes: Mapping[str, Sequence[int]]) -> str:
    """The text in which patterns are searched: a line for each kind of layer and input width."""
    widths: dict[str, int] = {}
    for key, shape in shapes.items():
        layer, part, _ = split_key(key)
        if part and len(key) <= LONGEST_KEY:
            size = shape[1] if part in SIZED and len(shape) > 1 else 1
            widths[layer] = widths.get(layer, 1) * size
    return "\n".join({f"{_plain(layer)}={width}_" for layer, width in widths.items()})


def _plain(layer: str) -> str:
    return NUMBER.sub("N", f"_{layer.replace('.', '_')}_")


def _any_in(patterns: tuple[str, ...], text: str) -> bool:
    return any(f"_{pattern}_" in text for pattern in patterns)


def _each(start: str, ends: str, width: int | None = None) -> Iterator[str]:
    # start_end for each of the words, and what the line ends with if the width is to be that
    for end in ends.split():
        yield f"{start}_{end}" + (f"_={width}" if width else "")


FLUX = ("flux", "flux_schnell", "flex1", "flex2", "flux_kontext")
QWEN_IMAGE = tuple(_each("qwen_image", "2512 edit edit_plus edit_plus_2511"))
WAN_14B = ("wan21_14b", "wan22_14b_t2v", "wan22_14b_i2v")
WAN_I2V = ("wan21_i2v_14b", "wan21_i2v_14b480p")
SGM = ("input_blocks_N", "middle_block_N", "output_blocks_N")
FLUX_MODULATION = (
    *_each("double_blocks_N", "img_mod_lin txt_mod_lin"),
    "single_blocks_N_modulation_lin",
)
WAN_IMAGE = (
    *_each("blocks_N_cross_attn", "k_img v_img"),
    *_each("blocks_N_attn2", "add_k_proj add_v_proj"),
)
WAN_PAIR = ("transformer_N_blocks_N",)


def _attention2(start: str, width: int) -> tuple[str, ...]:
    return tuple(_each(f"{start}_transformer_blocks_N_attn2", "to_k to_v", width))


def _clip(prefix: str, width: int | None = None) -> tuple[str, ...]:
    layer = f"{prefix}_text_model_encoder_layers_N"
    return (
        *_each(f"{layer}_self_attn", "q_proj k_proj v_proj out_proj", width),
        *_each(layer, "mlp_fc1", width),
    )


def _refined(width: int) -> tuple[str, ...]:
    # Lumina 2 and OmniGen 2 differ in width only
    layers = "layers_N noise_refiner_N context_refiner_N"
    parts = "attn_to_q attn_to_k attn_to_v attn_to_out_N feed_forward_linear_1"
    return tuple(name for layer in layers.split() for name in _each(layer, parts, width))


def _bfl(width: int) -> tuple[str, ...]:
    # FLUX.2, in its own names and in those of diffusers
    sides = "img_attn_qkv img_attn_proj img_mlp_N txt_attn_qkv txt_attn_proj txt_mlp_N"
    return (
        *_each("double_blocks_N", sides, width),
        *_each("single_blocks_N", "linear1", width),
        *_each("single_transformer_blocks_N", "attn_to_qkv_mlp_proj", width),
        *_each("transformer_blocks_N", "ff_linear_in ff_context_linear_in", width),
    )


def _wan(width: int) -> tuple[str, ...]:
    # in the names of its first release, in those of diffusers, and mixed (old LoKr)
    return (
        *_each("blocks_N_self_attn", "q k v o to_out_N", width),
        *_each("blocks_N_cross_attn", "q k v o to_out_N", width),
        *_each("blocks_N_attn1", "to_q to_k to_v to_out_N", width),
        *_each("blocks_N_attn2", "to_q to_k to_v to_out_N", width),
        *_each("blocks_N_ffn", "N net_N_proj", width),
    )


# fmt: off
LAYOUTS = (
    Layout("sd15", "Stable Diffusion 1.5", ("sd15",),
           (*_attention2("attentions_N", 768), *_clip("lora_te", 768))),
    Layout("sdxl", "SDXL", ("sdxl",),
           (*_attention2("attentions_N", 2048), *_clip("lora_te2", 1280)), without=SGM),
    Layout("sdxl_sgm", "SDXL in the names of its first release", ("sdxl",),
           tuple(name for block in ("input_blocks_N_N", "middle_block_N", "output_blocks_N_N")
                 for name in _attention2(block, 2048))),
    Layout("clip_l", "the first text encoder of FLUX.1 or SDXL", (*FLUX, "sdxl"),
           _clip("lora_te1"), without=("blocks_N", "block_N", "lora_te2_text_model")),
    Layout("flux", "FLUX.1", (*FLUX, "chroma"),
           (*_each("single_transformer_blocks_N",
                   "attn_to_q attn_to_k attn_to_v proj_mlp proj_out norm_linear"),
            *_each("transformer_blocks_N", "norm1_linear norm1_context_linear", 3072),
            *_each("transformer_blocks_N", "ff_net_N_proj ff_context_net_N_proj", 3072))),
    Layout("flux_bfl", "FLUX.1 in the names of its first release", FLUX, FLUX_MODULATION),
    Layout("chroma", "Chroma, or FLUX.1 without its modulation", ("chroma", *FLUX),
           (*_each("double_blocks_N", "img_mlp_N txt_mlp_N", 12288),
            "single_blocks_N_linear2_=15360"),
           without=(*FLUX_MODULATION, *_bfl(4096))),
    Layout("flux2", "FLUX.2 dev", ("flux2", "flux2_diffusers"), _bfl(6144)),
    Layout("flux2_klein_4b", "FLUX.2 Klein 4B", ("flux2_klein_4b",),
           (*_each("double_blocks_N", "img_mlp_N txt_mlp_N", 9216),
            "single_blocks_N_linear2_=12288",
            "single_transformer_blocks_N_attn_to_qkv_mlp_proj_=3072",
            *_each("transformer_blocks_N", "ff_linear_in ff_context_linear_in", 3072))),
    Layout("flux2_klein_9b", "FLUX.2 Klein 9B", ("flux2_klein_9b",), _bfl(4096)),
    Layout("lumina2", "Lumina 2", ("lumina2",), _refined(2304)),
    Layout("omnigen2", "OmniGen 2", ("omnigen2",), _refined(2520)),
    Layout("hidream", "HiDream", ("hidream", "hidream_e1"),
           ("double_stream_blocks_N_block", "single_stream_blocks_N_block")),
    Layout("qwen_image", "Qwen-Image", ("qwen_image", *QWEN_IMAGE),
           tuple(_each("transformer_blocks_N", "img_mod_N txt_mod_N img_mlp_net txt_mlp_net"))),
    Layout("zimage", "Z-Image", ("zimage", "zimage_turbo", "zimage_deturbo"),
           (*_each("layers_N_attention", "to_q to_k to_v to_out_N"),
            "layers_N_feed_forward_w1_=3840")),
    Layout("wan_1b", "Wan 2.1 1.3B", ("wan21_1b",), _wan(1536), without=WAN_PAIR),
    Layout("wan_14b", "Wan 2.1 or 2.2 14B", (*WAN_14B, *WAN_I2V),
           _wan(5120), without=(*WAN_IMAGE, *WAN_PAIR)),
    Layout("wan_14b_pair", "both experts of Wan 2.2 14B", WAN_14B[1:], WAN_PAIR),
    Layout("wan_i2v", "Wan 2.1 image to video", WAN_I2V, WAN_IMAGE, without=WAN_PAIR),
    Layout("wan_5b", "Wan 2.2 5B", ("wan22_5b",), _wan(3072), without=WAN_PAIR),
    Layout("ltx2", "LTX-2", ("ltx2", "ltx2.3"),
           tuple(_each("transformer_blocks_N", "audio_attn1 audio_attn2 audio_ff "
                       "audio_to_video_attn video_to_audio_attn")),
           without=("to_gate_logits",)),
    Layout("ltx2.3", "LTX-2.3", ("ltx2.3",), ("to_gate_logits",)),
    Layout("krea2", "Krea 2", ("krea2", "krea2_turbo", "krea2_o_edit", "krea2_o_edit_turbo"),
           tuple(_each("blocks_N_attn", "wq wk wv wo"))),
    Layout("minimax_h3", "MiniMax-H3", ("minimax_h3",),
           ("blocks_N_attn_qkv_proj", "blocks_N_adaln_proj_linear")),
)
# fmt: on
