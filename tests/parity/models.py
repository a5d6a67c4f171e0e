"""The models that rows are made of, and how the trainer is told to load and sample them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kinds import PROFILES

KOHYA = {"linear": 4, "linear_alpha": 2, "conv": 2, "conv_alpha": 1}  # scales of a half
PEFT = {"linear": 4, "linear_alpha": 2}  # the trainer ignores alpha here

# The curly quote and the ligature are where trainer versions tokenize CLIP prompts differently.
PROMPTS = (
    "a photo of [trigger] cat on the beach",
    "portrait of a woman\u2019s blue hat, \ufb01lm --w 104 --h 70 --seed 7 --cfg 3.5 --s 3 "
    "--n blurry, low quality",
)
# For models that the trainer fails on off their grid of 16 px, or that were on one of 32 px before.
ON_GRID = (PROMPTS[0], PROMPTS[1].replace("--w 104", "--w 112"))


@dataclass(frozen=True)
class ModelRow:
    """How the trainer is told to load and sample a model."""

    id: str
    arch: str  # of the trainer's config
    network: dict[str, Any]
    guidance_scale: float
    samplers: tuple[str, ...] = ()  # those compared one by one, beside the default
    train: dict[str, Any] = field(default_factory=dict)
    prompts: tuple[str, ...] = PROMPTS
    since: str = PROFILES[0]  # the first version of the trainer that has it
    # per sample: what the trainer's sample says of control images, {"ctrl_img": file, ...}; in all
    # rows if the model needs some, else in rows of their own
    controls: tuple[dict[str, Any], ...] = ()
    needs_controls: bool = False
    sample: dict[str, Any] = field(default_factory=dict)  # laid over SAMPLE
    model: dict[str, Any] = field(default_factory=dict)  # of the trainer's config
    pair: bool = False  # its adapter is two files, for the high-noise and the low-noise expert
    switches: dict[str, bool] = field(default_factory=dict)  # unlike the trainer's form has them
    tiles: bool = False  # its VAE works in tiles where the job says `low_vram`
    saving: tuple[dict[str, Any], ...] = ()  # laid over its samples in rows with `low_vram`


SD_SAMPLERS = (
    "ddim", "pndm", "lms", "k_lms", "euler", "k_euler", "euler_a", "dpmsolver++", "k_dpmsolver++",
    "dpmsingle", "heun", "dpm_2", "dpm_2_a", "lcm", "custom_lcm", "mean_flow", "flowmatch",
)  # fmt: skip
WITH_TEXT_ENCODERS = {"train_text_encoder": True}
PAINT_OR_FOLLOW = (
    {"ctrl_img": "landscape.png", "ctrl_idx": 1},
    {"ctrl_img": "hole.inpaint.png"},
)
REFERENCES = (
    {"ctrl_img": "landscape.png"},
    {"ctrl_img_1": "portrait.png", "ctrl_img_2": "landscape.png"},
)
# The first one is read twice by some, as the job names it `ctrl_img`.
ONE_OR_TWO = (
    {"ctrl_img": "landscape.png"},
    {"ctrl_img_1": "portrait.png", "ctrl_img_2": "landscape.png"},
)
WIDE = {"width": 288, "height": 64, "num_frames": 1, "sample_steps": 2}  # a tile has 256 px
WIDE_CLIP = WIDE | {"num_frames": 17}  # decoded 16 at a time with low_vram
WIDE_CONTROL = {"ctrl_img": "wide.png"}
TWO_OR_THREE = (
    {"ctrl_img": "landscape.png", "ctrl_img_2": "wide.png"},
    {"ctrl_img_1": "portrait.png", "ctrl_img_2": "landscape.png", "ctrl_img_3": "wide.png"},
)
CLIP = {"width": 64, "height": 64, "num_frames": 6, "fps": 8}  # 5 frames are drawn
STILL = CLIP | {"num_frames": 1}
TILING = {"vae_tiling": True}
FOUR_FRAMES_MORE = (WIDE | {"num_frames": 8}, {"num_frames": 8})
# Later versions of the trainer no longer read the raised digit as one.
WAN21 = (PROMPTS[0].replace("cat", "cat\u00b2"), PROMPTS[1].replace("--w 104", "--w 80"))
START_FRAMES = ({"ctrl_img": "landscape.png"}, {"ctrl_img": "portrait.png"})
# LTX-2 draws 9 of 12 frames; with low_vram it decodes 16 at a time, and before, tiles of 256 px.
WITHOUT_WIDTH = (PROMPTS[0], PROMPTS[1].replace(" --w 104", ""))
OUTER_BLOCKS = {"network_kwargs": {"only_if_contains": ["blocks.0.", "blocks.28."]}}
LTX2_SAMPLE = {"width": 64, "height": 64, "num_frames": 12, "fps": 8}
LTX2_CONTROLS = (
    {"ctrl_img": "landscape.png", "num_frames": 17},
    {"ctrl_img": "portrait.png", "width": 288, "num_frames": 5},  # a clip of one frame
)
# fmt: off
MODELS = (
    ModelRow("sd15", "sd15", KOHYA, 7.0, SD_SAMPLERS, WITH_TEXT_ENCODERS),
    ModelRow("sdxl", "sdxl", KOHYA, 6.0, SD_SAMPLERS, WITH_TEXT_ENCODERS),
    ModelRow("flux", "flux", PEFT, 4.0, ("mean_flow",), WITH_TEXT_ENCODERS),
    ModelRow("flux_schnell", "flux", PEFT, 1.0),
    ModelRow("flex1", "flex1", PEFT, 4.0),
    ModelRow("flex2", "flex2", PEFT, 4.0, train=WITH_TEXT_ENCODERS, controls=PAINT_OR_FOLLOW),
    ModelRow(
        "flux_kontext", "flux_kontext", PEFT, 4.0, train=WITH_TEXT_ENCODERS,
        controls=({"ctrl_img": "portrait.png"}, {"ctrl_img": "landscape.png"}),
        needs_controls=True,
    ),
    ModelRow("lumina2", "lumina2", PEFT, 4.0, ("mean_flow",), prompts=ON_GRID),
    ModelRow("qwen_image", "qwen_image", PEFT, 4.0, tiles=True),
    ModelRow("qwen_image_2512", "qwen_image:2512", PEFT, 4.0, tiles=True),
    ModelRow(
        "qwen_image_edit", "qwen_image_edit", PEFT, 4.0,
        controls=({"ctrl_img": "landscape.png"}, {"ctrl_img": "portrait.png"}),
        needs_controls=True, tiles=True,
    ),
    ModelRow(
        "qwen_image_edit_plus", "qwen_image_edit_plus", PEFT, 4.0,
        controls=ONE_OR_TWO, needs_controls=True, tiles=True, switches={"do_cfg_norm": True},
    ),
    ModelRow(
        "qwen_image_edit_plus_2511", "qwen_image_edit_plus:2511", PEFT, 1.0,
        controls=TWO_OR_THREE, needs_controls=True, tiles=True,
    ),
    ModelRow("zimage_turbo", "zimage:turbo", PEFT, 1.0),
    ModelRow("zimage", "zimage", PEFT, 4.0, prompts=ON_GRID),
    ModelRow("zimage_deturbo", "zimage:deturbo", PEFT, 3.0),
    ModelRow("hidream", "hidream", PEFT, 4.0, ("flowmatch",)),
    ModelRow(
        "hidream_e1", "hidream_e1", PEFT, 4.0,
        controls=({"ctrl_img": "landscape.png"}, {"ctrl_img": "portrait.png"}),
        needs_controls=True,
    ),
    ModelRow(
        "omnigen2", "omnigen2", PEFT, 4.0,
        controls=({"ctrl_img": "portrait.png"}, {"ctrl_img": "landscape.png"}),
    ),
    ModelRow("krea2", "krea2", PEFT, 4.0, since="0.12.26", tiles=True),
    ModelRow("krea2_turbo", "krea2:turbo", PEFT, 1.0, since="0.12.26", tiles=True),
    ModelRow(  # needs none, but krea2 is what it is without
        "krea2_o_edit", "krea2:o_edit", PEFT, 4.0, since="0.12.26",
        controls=REFERENCES, needs_controls=True, tiles=True,
        switches={"kv_cache": False, "match_target_res": False},
    ),
    ModelRow(
        "krea2_o_edit_turbo", "krea2:o_edit_turbo", PEFT, 1.0, since="0.12.26",
        controls=REFERENCES, tiles=True,
    ),
    ModelRow("chroma", "chroma", PEFT, 4.0),
    ModelRow("flux2", "flux2", PEFT, 4.0, controls=REFERENCES),
    ModelRow("flux2_diffusers", "flux2", PEFT, 4.0, controls=REFERENCES),
    ModelRow(
        "flux2_klein_4b", "flux2_klein_4b", PEFT, 4.0, since="0.12.26", controls=REFERENCES
    ),
    ModelRow(
        "flux2_klein_9b", "flux2_klein_9b", PEFT, 4.0, since="0.12.26", controls=REFERENCES
    ),
    ModelRow(
        "wan21_1b", "wan21:1b", PEFT, 4.0, prompts=WAN21, sample=CLIP, saving=FOUR_FRAMES_MORE,
        switches=TILING,
    ),
    ModelRow("wan21_14b", "wan21:14b", PEFT, 1.0, prompts=WAN21, sample=STILL, tiles=True),
    ModelRow(
        "wan21_i2v_14b", "wan21_i2v:14b", PEFT, 4.0,
        controls=START_FRAMES, needs_controls=True, sample=CLIP, saving=({"num_frames": 5},) * 2,
    ),
    ModelRow(
        "wan21_i2v_14b480p", "wan21_i2v:14b480p", PEFT, 1.0,
        controls=START_FRAMES, needs_controls=True, sample=STILL, saving=({"num_frames": 1},) * 2,
    ),
    ModelRow(
        "wan22_14b_t2v", "wan22_14b:t2v", PEFT, 4.0, sample=CLIP, pair=True, tiles=True,
        switches=TILING,
    ),
    ModelRow(
        "wan22_14b_i2v", "wan22_14b_i2v", PEFT, 4.0, sample=CLIP, pair=True,
        controls=({"ctrl_img": "landscape.png"}, {"ctrl_img": "portrait.png"}),
        needs_controls=True, saving=({}, {}),
    ),
    ModelRow(
        "wan22_5b", "wan22_5b", PEFT, 4.0, sample=CLIP, tiles=True, switches=TILING,
        saving=(WIDE | WIDE_CONTROL | {"num_frames": 5}, {}),
        controls=({"ctrl_img": "portrait.png"}, {"ctrl_img": "landscape.png"}),
    ),
    ModelRow(
        "ltx2", "ltx2", PEFT, 4.0, prompts=WITHOUT_WIDTH, controls=LTX2_CONTROLS,
        sample=LTX2_SAMPLE, model={"low_vram": True},
    ),
    ModelRow(
        "ltx2.3", "ltx2.3", PEFT | OUTER_BLOCKS, 4.0, prompts=WITHOUT_WIDTH,
        since="0.12.26", controls=LTX2_CONTROLS, sample=LTX2_SAMPLE, model={"low_vram": True},
    ),
)
# fmt: on
