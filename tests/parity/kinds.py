"""Networks of other kinds than plain LoRA that the trainer's jobs of a row have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PROFILES = ("0.7.19", "0.12.26")


@dataclass(frozen=True)
class Kind:
    """A network of another kind. network: the section of the trainer's config.

    fill: how large its seeded values are, see trainer_networks.py. merges: the trainer can.
    """

    network: dict[str, Any]
    fill: dict[str, float] = field(default_factory=dict)
    merges: bool = True
    since: str = PROFILES[0]


FULL_LOKR = {"type": "lokr", "lokr_full_rank": True, "lokr_factor": -1}
FACTORED_LOKR = {
    "type": "lokr", "lokr_full_rank": False, "lokr_factor": 4, "linear": 2, "linear_alpha": 1,
    "conv": 2, "conv_alpha": 1,
}  # fmt: skip
DORA = {"type": "dora", "linear": 4, "linear_alpha": 4}
DIFF = {
    "type": "lora", "linear": 4, "all_layers": True,
    "network_kwargs": {"full_if_contains": ["proj_mlp"]},
}  # fmt: skip


def _only(*parts: str) -> dict[str, Any]:
    # fewer layers make smaller files; full LoKr has all of them
    return {"network_kwargs": {"only_if_contains": list(parts)}}


SD_KINDS = {
    "lokr": Kind(FULL_LOKR),
    "lokr_factored": Kind(FACTORED_LOKR | _only("resnets", "ff.net", "fc1")),
    # on convolutions, as its proj_in is, the trainer fails
    "dora": Kind(DORA | _only("attn1", "ff.net", "fc1"), merges=False),
}
FLUX_KINDS = {
    "lokr": Kind(FULL_LOKR),
    "lokr_factored": Kind(FACTORED_LOKR | _only("attn", "fc1")),
    "lokr_old": Kind(FACTORED_LOKR | _only("attn", "fc1") | {"old_lokr_format": True}),
    "dora": Kind(DORA | _only("attn", "fc1"), merges=False),
    "fullrank": Kind({"type": "fullrank", "linear": 4} | _only("to_q", "proj_mlp"), {"down": 0.3}),
    "diff": Kind(DIFF, since="0.12.26"),
}
KINDS = {"sd15": SD_KINDS, "sdxl": SD_KINDS, "flux": FLUX_KINDS}
STACKS = {"sd15": ("lokr", "lora"), "sdxl": ("dora", "lora"), "flux": ("lokr_factored", "lora")}
STRENGTHS = (0.6, 0.5)  # of the adapters of one row
# What a job's `model` section may name under the trained network: case -> its field.
ASSISTANT = {"assistant": "assistant_lora_path"}
FUSED = {"fused": "lora_path"}
BASE_LORAS = {
    "sd15": FUSED,
    "sdxl": FUSED,
    "flux_schnell": ASSISTANT | {"inference": "inference_lora_path"} | FUSED,
    "zimage_turbo": ASSISTANT,
    "krea2_turbo": ASSISTANT,
}
BASE_FILL = {"seed": 4321, "down": 1.0, "up": 0.2}
BASE_PARTS = dict.fromkeys(("sd15", "sdxl"), _only("attn1", "conv1", "fc1"))
