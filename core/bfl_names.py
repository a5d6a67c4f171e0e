"""How FLUX.2 and Chroma name their parts in their first release, for `released_names.released`.

Left are the names of diffusers, but with the projections of a block in one, as released.
"""

from __future__ import annotations

_DOUBLE = r"^transformer_blocks\.(\d+)\."
_SINGLE = r"^single_transformer_blocks\.(\d+)\."

# modules and parameters alike
_BLOCKS = (
    (r"\b(norm_\w+|norms\.\d+)\.weight$", r"\1.scale"),
    (rf"{_DOUBLE}attn\.to_qkv\b", r"double_blocks.\1.img_attn.qkv"),
    (rf"{_DOUBLE}attn\.to_added_qkv\b", r"double_blocks.\1.txt_attn.qkv"),
    (rf"{_DOUBLE}attn\.to_out\.0\b", r"double_blocks.\1.img_attn.proj"),
    (rf"{_DOUBLE}attn\.to_add_out\b", r"double_blocks.\1.txt_attn.proj"),
    (rf"{_DOUBLE}attn\.norm_q\b", r"double_blocks.\1.img_attn.norm.query_norm"),
    (rf"{_DOUBLE}attn\.norm_k\b", r"double_blocks.\1.img_attn.norm.key_norm"),
    (rf"{_DOUBLE}attn\.norm_added_q\b", r"double_blocks.\1.txt_attn.norm.query_norm"),
    (rf"{_DOUBLE}attn\.norm_added_k\b", r"double_blocks.\1.txt_attn.norm.key_norm"),
    (rf"{_SINGLE}attn\.to_qkv_mlp_proj\b", r"single_blocks.\1.linear1"),
    (rf"{_SINGLE}attn\.to_out\b", r"single_blocks.\1.linear2"),
    (rf"{_SINGLE}attn\.norm_q\b", r"single_blocks.\1.norm.query_norm"),
    (rf"{_SINGLE}attn\.norm_k\b", r"single_blocks.\1.norm.key_norm"),
    (r"^x_embedder\b", "img_in"),
    (r"^context_embedder\b", "txt_in"),
    (r"^proj_out\b", "final_layer.linear"),
)
FLUX2 = (
    *_BLOCKS,
    (rf"{_DOUBLE}ff\.linear_in\b", r"double_blocks.\1.img_mlp.0"),
    (rf"{_DOUBLE}ff\.linear_out\b", r"double_blocks.\1.img_mlp.2"),
    (rf"{_DOUBLE}ff_context\.linear_in\b", r"double_blocks.\1.txt_mlp.0"),
    (rf"{_DOUBLE}ff_context\.linear_out\b", r"double_blocks.\1.txt_mlp.2"),
    (r"^time_guidance_embed\.timestep_embedder\.linear_1\b", "time_in.in_layer"),
    (r"^time_guidance_embed\.timestep_embedder\.linear_2\b", "time_in.out_layer"),
    (r"^time_guidance_embed\.guidance_embedder\.linear_1\b", "guidance_in.in_layer"),
    (r"^time_guidance_embed\.guidance_embedder\.linear_2\b", "guidance_in.out_layer"),
    (r"^((double|single)_stream_modulation\w*)\.linear\b", r"\1.lin"),
    (r"^norm_out\.linear\b", "final_layer.adaLN_modulation.1"),
)
CHROMA = (
    *_BLOCKS,
    (rf"{_DOUBLE}ff\.net\.0\.proj\b", r"double_blocks.\1.img_mlp.0"),
    (rf"{_DOUBLE}ff\.net\.2\b", r"double_blocks.\1.img_mlp.2"),
    (rf"{_DOUBLE}ff_context\.net\.0\.proj\b", r"double_blocks.\1.txt_mlp.0"),
    (rf"{_DOUBLE}ff_context\.net\.2\b", r"double_blocks.\1.txt_mlp.2"),
    (r"^(distilled_guidance_layer\.layers\.\d+)\.linear_1\b", r"\1.in_layer"),
    (r"^(distilled_guidance_layer\.layers\.\d+)\.linear_2\b", r"\1.out_layer"),
)
FLUX2_VAE = (
    (r"^quant_conv\b", "encoder.quant_conv"),
    (r"^post_quant_conv\b", "decoder.post_quant_conv"),
    (r"^encoder\.down_blocks\b", "encoder.down"),
    # the released decoder counts its blocks from the picture
    *((rf"^decoder\.up_blocks\.{block}\b", f"decoder.up.{3 - block}") for block in range(4)),
    (r"\bmid_block\.resnets\.0\b", "mid.block_1"),
    (r"\bmid_block\.resnets\.1\b", "mid.block_2"),
    (r"\bresnets\b", "block"),
    (r"\bmid_block\.attentions\.0\.group_norm\b", "mid.attn_1.norm"),
    (r"\bmid_block\.attentions\.0\.to_([qkv])\b", r"mid.attn_1.\1"),
    (r"\bmid_block\.attentions\.0\.to_out\.0\b", "mid.attn_1.proj_out"),
    (r"\bconv_shortcut\b", "nin_shortcut"),
    (r"\b(down|up)samplers\.0\.conv\b", r"\1sample.conv"),
    (r"\bconv_norm_out\b", "norm_out"),
)
