"""How the keys of adapter files end: which part of a layer a tensor is, and in which spelling."""

from __future__ import annotations

# ending -> (part of the layer, spelling); no spelling where several have it
ENDINGS = {
    "lora_down.weight": ("down", "kohya"),
    "lora_up.weight": ("up", "kohya"),
    "lora_A.weight": ("down", "peft"),
    "lora_B.weight": ("up", "peft"),
    "lora_A.default.weight": ("down", "peft"),
    "lora_B.default.weight": ("up", "peft"),
    "lora.down.weight": ("down", "diffusers"),
    "lora.up.weight": ("up", "diffusers"),
    "lora_linear_layer.down.weight": ("down", "diffusers"),
    "lora_linear_layer.up.weight": ("up", "diffusers"),
    "magnitude": ("magnitude", ""),
    "lora_magnitude_vector": ("magnitude", ""),
    "lora_magnitude_vector.weight": ("magnitude", ""),
    "lokr_w1": ("w1", "lycoris"),
    "lokr_w2": ("w2", "lycoris"),
    "lokr_w2_a": ("w2_a", "lycoris"),
    "lokr_w2_b": ("w2_b", "lycoris"),
    "diff": ("diff", "diff"),
    "diff_b": ("diff_b", "diff"),
    "alpha": ("alpha", ""),
}
LONGEST = max(map(len, ENDINGS)) + 1


def split_key(key: str) -> tuple[str, str, str]:
    """(name of the layer, part, spelling); part and spelling are empty for an unknown ending."""
    start = max(len(key) - LONGEST, 0)
    dot = key.find(".", start)
    while dot >= 0:  # the longest ending first
        if key[dot + 1 :] in ENDINGS:
            return key[:dot], *ENDINGS[key[dot + 1 :]]
        dot = key.find(".", dot + 1)
    return key, "", ""
