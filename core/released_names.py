"""How the first release of a model names its parts, where the trainer's files follow it.

Each rule is a regular expression on a name of diffusers and what stands for it in the release.
"""

from __future__ import annotations

import re

# modules and parameters alike
KREA2 = (
    (r"\b(norm\w*)\.weight$", r"\1.scale"),
    (r"^img_in\b", "first"),
    (r"^time_embed\.linear_1\b", "tmlp.0"),
    (r"^time_embed\.linear_2\b", "tmlp.2"),
    (r"^time_mod_proj\b", "tproj.1"),
    (r"^txt_in\.norm\b", "txtmlp.0"),
    (r"^txt_in\.linear_1\b", "txtmlp.1"),
    (r"^txt_in\.linear_2\b", "txtmlp.3"),
    (r"^text_fusion\b", "txtfusion"),
    (r"^transformer_blocks\b", "blocks"),
    (r"^final_layer\.scale_shift_table$", "last.modulation.lin"),
    (r"^final_layer\b", "last"),
    (r"\.scale_shift_table$", ".mod.lin"),
    (r"\.norm1\b", ".prenorm"),
    (r"\.norm2\b", ".postnorm"),
    (r"\.norm_([qk])\b", r".qknorm.\1norm"),
    (r"\.to_([qkv])\b", r".w\1"),
    (r"\.to_out\.0\b", ".wo"),
    (r"\.to_gate\b", ".gate"),
    (r"\.ff\b", ".mlp"),
)


def released(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    """The name in the first release of what diffusers calls `name`."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
