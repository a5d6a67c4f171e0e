"""How LTX-2 and LTX-2.3 name their parts in their first release, for `released_names.released`.

Upstream: ostris/ai-toolkit@27a03a91
extensions_built_in/diffusion_models/ltx2/convert_ltx2_to_diffusers.py
"""

from __future__ import annotations

_NORMS = ((r"\bnorm_([qk])\b", r"\1_norm"),)
NETWORK = (
    (r"^(audio_)?time_embed\b", r"\1adaln_single"),
    (r"^(audio_)?prompt_adaln\b", r"\1prompt_adaln_single"),
    (r"^(audio_)?proj_in\b", r"\1patchify_proj"),
    (r"^av_cross_attn_(video|audio)_scale_shift\b", r"av_ca_\1_scale_shift_adaln_single"),
    (r"^av_cross_attn_video_a2v_gate\b", "av_ca_a2v_gate_adaln_single"),
    (r"^av_cross_attn_audio_v2a_gate\b", "av_ca_v2a_gate_adaln_single"),
    (r"\b(video|audio)_a2v_cross_attn_scale_shift_table$", r"scale_shift_table_a2v_ca_\1"),
    *_NORMS,
)
CONNECTORS = (
    (r"^(video|audio)_connector\b", r"\1_embeddings_connector"),
    (r"\btransformer_blocks\b", "transformer_1d_blocks"),
    (r"^text_proj_in\b", "text_embedding_projection.aggregate_embed"),
    (r"^(video|audio)_text_proj_in\b", r"text_embedding_projection.\1_aggregate_embed"),
    *_NORMS,
)
_STATISTICS = (
    (r"^latents_mean$", "per_channel_statistics.mean-of-means"),
    (r"^latents_std$", "per_channel_statistics.std-of-means"),
)
# Blocks and what changes the size between them are counted in one row there; last to first, so
# that no rule meets what another one made.
VIDEO_VAE = (
    *(
        rule
        for block in (3, 2, 1, 0)
        for rule in (
            (rf"^encoder\.down_blocks\.{block}\.downsamplers\.0\b",
             f"encoder.down_blocks.{2 * block + 1}"),
            (rf"^encoder\.down_blocks\.{block}\.resnets\b",
             f"encoder.down_blocks.{2 * block}.res_blocks"),
            (rf"^decoder\.up_blocks\.{block}\.upsamplers\.0\b",
             f"decoder.up_blocks.{2 * block + 1}"),
            (rf"^decoder\.up_blocks\.{block}\.resnets\b",
             f"decoder.up_blocks.{2 * block + 2}.res_blocks"),
        )
    ),
    (r"^encoder\.mid_block\.resnets\b", "encoder.down_blocks.8.res_blocks"),
    (r"^decoder\.mid_block\.resnets\b", "decoder.up_blocks.0.res_blocks"),
    *_STATISTICS,
)  # fmt: skip
AUDIO_VAE = _STATISTICS
VOCODER = (
    (r"\bupsamplers\b", "ups"),
    (r"\bresnets\b", "resblocks"),
    (r"\bconv_in\b", "conv_pre"),
    (r"\bconv_out\b", "conv_post"),
    (r"\bact_out\b", "act_post"),
    (r"\bdownsample\b", "downsample.lowpass"),
)
