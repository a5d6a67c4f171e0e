"""What is compared with the trainer: a row per model, precision and way of applying adapters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinds import KINDS, PROFILES, STACKS, STRENGTHS, Kind

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
DTYPES = ("fp32", "bf16")
TRIGGER = "sks"
CONTROLS = GOLDENS / "controls"
SIDES = ("high", "low")  # the experts of a model with two
CONTROL_KEYS = ("ctrl_img", "ctrl_img_1", "ctrl_img_2", "ctrl_img_3")
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
# Architectures that the trainer lets cache text embeddings only, not unload the text encoder.
ONLY_CACHED = ("qwen_image_edit",)
# Longer than the 256 tokens up to which bf16 can count, as it must where it holds the mask.
LONG = f"a photo of [trigger] {'and of a hat ' * 90} --n blurry, low quality"


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
    tiles: bool = False  # its VAE decodes in tiles where the job says `vae_tiling`


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
CLIP = {"width": 64, "height": 64, "num_frames": 6, "fps": 8}  # 5 frames are drawn
STILL = CLIP | {"num_frames": 1}
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
    ModelRow("qwen_image", "qwen_image", PEFT, 4.0),
    ModelRow("qwen_image_2512", "qwen_image:2512", PEFT, 4.0),
    ModelRow(
        "qwen_image_edit", "qwen_image_edit", PEFT, 4.0,
        controls=({"ctrl_img": "landscape.png"}, {"ctrl_img": "portrait.png"}),
        needs_controls=True,
    ),
    ModelRow(
        "qwen_image_edit_plus", "qwen_image_edit_plus", PEFT, 4.0,
        controls=ONE_OR_TWO, needs_controls=True,
    ),
    ModelRow(
        "qwen_image_edit_plus_2511", "qwen_image_edit_plus:2511", PEFT, 4.0,
        controls=ONE_OR_TWO, needs_controls=True,
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
    ModelRow("krea2", "krea2", PEFT, 4.0, since="0.12.26"),
    ModelRow("krea2_turbo", "krea2:turbo", PEFT, 1.0, since="0.12.26"),
    ModelRow(  # needs none, but krea2 is what it is without
        "krea2_o_edit", "krea2:o_edit", PEFT, 4.0, since="0.12.26",
        controls=REFERENCES, needs_controls=True,
    ),
    ModelRow(
        "krea2_o_edit_turbo", "krea2:o_edit_turbo", PEFT, 1.0, since="0.12.26", controls=REFERENCES
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
    ModelRow("wan21_1b", "wan21:1b", PEFT, 4.0, prompts=WAN21, sample=CLIP),
    ModelRow("wan21_14b", "wan21:14b", PEFT, 1.0, prompts=WAN21, sample=STILL),
    ModelRow(
        "wan21_i2v_14b", "wan21_i2v:14b", PEFT, 4.0,
        controls=START_FRAMES, needs_controls=True, sample=CLIP,
    ),
    ModelRow(
        "wan21_i2v_14b480p", "wan21_i2v:14b480p", PEFT, 1.0,
        controls=START_FRAMES, needs_controls=True, sample=STILL,
    ),
    ModelRow("wan22_14b_t2v", "wan22_14b:t2v", PEFT, 4.0, sample=CLIP, pair=True, tiles=True),
    ModelRow(
        "wan22_14b_i2v", "wan22_14b_i2v", PEFT, 4.0, sample=CLIP, pair=True,
        controls=({"ctrl_img": "landscape.png"}, {"ctrl_img": "portrait.png"}),
        needs_controls=True,
    ),
    ModelRow(
        "wan22_5b", "wan22_5b", PEFT, 4.0, sample=CLIP, tiles=True,
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


@dataclass(frozen=True)
class Row:
    """One job of the trainer: two samples, or one for rows of a sampler or of other kinds.

    multipliers: of the first adapter, per sample; empty without adapter. Different ones make it
    live, as does `hooked`. kinds: of the adapters; `lora` is the model's own network. cached: its
    prompts are encoded before training. controlled: it has the model's control images. sides: the
    experts that are trained, of two. tiled: one picture that the VAE decodes in tiles.
    """

    model: ModelRow
    dtype: str
    case: str
    multipliers: tuple[float, ...] = ()
    sampler: str = ""
    kinds: tuple[str, ...] = ("lora",)
    hooked: bool = False
    cached: bool = False
    controlled: bool = False
    sides: tuple[str, ...] = SIDES
    tiled: bool = False

    @property
    def id(self) -> str:
        return "-".join((self.model.id, self.dtype, self.case.replace("++", "pp")))

    @property
    def live(self) -> bool:
        return self.hooked or len(set(self.multipliers)) > 1

    @property
    def since(self) -> str:
        """The first version of the trainer that has all of its kinds."""
        kinds = (kind_of(self.model, kind).since for kind in self.kinds)
        return max(self.model.since, *kinds, key=PROFILES.index)

    @property
    def merges(self) -> bool:
        """Whether the trainer merges the first adapter."""
        return bool(self.multipliers) and not self.live and self._first.merges

    @property
    def _first(self) -> Kind:
        return kind_of(self.model, self.kinds[0])

    def samples(self) -> list[dict[str, Any]]:
        """The trainer's sample list, each beside its multiplier."""
        if self.sampler:
            return [{"prompt": PROMPTS[0], "width": 64, "height": 64, "sample_steps": 4}]
        if self.tiled:
            return [{"prompt": PROMPTS[0], **WIDE}]
        prompts = (self.model.prompts[0], LONG) if self.cached else self.model.prompts
        multipliers = self.multipliers or (1.0, 1.0)
        samples: list[dict[str, Any]] = [
            {"prompt": prompt, "network_multiplier": multiplier}
            for prompt, multiplier in zip(prompts, multipliers, strict=False)
        ]
        if self.controlled or self.model.needs_controls:
            for sample, controls in zip(samples, self.model.controls, strict=False):
                sample |= controls
        return samples

    def adapters(self, profile: str, sample: dict[str, Any]) -> list[tuple[list[str], float]]:
        """Files and multipliers of what acts in a sample, in order.

        Of a model with two experts there is a file for each, empty for one that is not trained.
        """
        if not self.multipliers:
            return []
        multipliers = (sample["network_multiplier"], *STRENGTHS[1:])
        files = (self.files(profile, kind) for kind in self.kinds)
        return list(zip(files, multipliers, strict=False))

    def files(self, profile: str, kind: str) -> list[str]:
        """The files of an adapter: one, or one for each expert."""
        if not self.model.pair:
            return [str(lora_file(self.model, profile, kind))]
        return [
            str(lora_file(self.model, profile, kind, side)) if side in self.sides else ""
            for side in SIDES
        ]


def kind_of(model: ModelRow, name: str) -> Kind:
    """A model's kind of network by its name."""
    return Kind(model.network) if name == "lora" else KINDS[model.id][name]


SAMPLE = {"width": 128, "height": 96, "seed": 42, "sample_steps": 4, "neg": "", "walk_seed": False}


def all_rows(profile: str) -> Iterator[Row]:
    """Every row that this version of the trainer has."""
    known = PROFILES[: PROFILES.index(profile) + 1]
    for model in (model for model in MODELS if model.since in known):
        for dtype in DTYPES:
            yield Row(model, dtype, "plain")
            yield Row(model, dtype, "cached", cached=True)
            yield Row(model, dtype, "merged", (1.0, 1.0))
            yield Row(model, dtype, "merged_0.6", (0.6, 0.6))
            yield Row(model, dtype, "live", (1.0, 0.6))
            if model.controls and not model.needs_controls:
                yield Row(model, dtype, "control", controlled=True)
                yield Row(model, dtype, "control_live", (1.0, 0.6), controlled=True)
            if model.tiles and dtype == "bf16":
                yield Row(model, dtype, "tiled", tiled=True)
            if model.pair:  # one of each is enough
                side = "high" if dtype == "fp32" else "low"
                yield Row(model, dtype, side, (1.0, 1.0), sides=(side,))
            for row in _kind_rows(model, dtype):
                if row.since in known:
                    yield row
        for sampler in model.samplers:
            yield Row(model, "bf16", sampler, sampler=sampler)


def _kind_rows(model: ModelRow, dtype: str) -> Iterator[Row]:
    cases = {kind: (kind,) for kind in KINDS.get(model.id, ())}
    if model.id in STACKS:
        cases["stack"] = STACKS[model.id]
    for case, kinds in cases.items():
        if len(kinds) > 1 or kind_of(model, kinds[0]).merges:
            yield Row(model, dtype, f"{case}_merged", STRENGTHS[:1], kinds=kinds)
        yield Row(model, dtype, f"{case}_live", STRENGTHS[:1], kinds=kinds, hooked=True)


def lora_file(model: ModelRow, profile: str, kind: str = "lora", side: str = "") -> Path:
    """The adapter that the trainer of this version wrote for the model, or for one expert."""
    name = model.id if kind == "lora" else f"{model.id}-{kind}"
    return GOLDENS / "loras" / f"{name}-{profile}{expert_suffix(side)}.safetensors"


def expert_suffix(side: str) -> str:
    """What the trainer puts behind a file's name for one of two experts."""
    return f"_{side}_noise" if side else ""


def control_images(sample: dict[str, Any]) -> list[Path]:
    """The files of a sample's control images, in the order of their slots."""
    first = sample.get("ctrl_img", sample.get("ctrl_img_1"))
    names = (first, sample.get("ctrl_img_2"), sample.get("ctrl_img_3"))
    return [CONTROLS / name for name in names if name]


def _as_paths(sample: dict[str, Any]) -> dict[str, Any]:
    files = {key: str(CONTROLS / name) for key, name in sample.items() if key in CONTROL_KEYS}
    return sample | files


def _model_settings(row: Row) -> dict[str, Any]:
    kwargs = {f"train_{side}_noise": False for side in SIDES if side not in row.sides}
    if row.tiled:
        kwargs["vae_tiling"] = True
    return row.model.model | ({"model_kwargs": kwargs} if kwargs else {})


def _train(row: Row) -> dict[str, Any]:
    if row.cached and row.model.arch not in ONLY_CACHED:
        return {"unload_text_encoder": True}
    return {} if row.cached else row.model.train


def job(row: Row, profile: str, checkpoint: Path) -> dict[str, Any]:
    """The row as trainer_run.py takes it."""
    # of a pair, the trainer finds the other file by its name
    files = [next(filter(None, row.files(profile, kind))) for kind in row.kinds]
    networks = [kind_of(row.model, kind).network for kind in row.kinds]
    given = {
        "name": row.id.replace(".", "_"),
        "arch": row.model.arch,
        "checkpoint": str(checkpoint),
        "dtype": row.dtype,
        "sampler": row.sampler or None,
        "trigger_word": TRIGGER,
        "network": networks[0],
        "train": _train(row),
        "cached": row.cached,
        "lora": files[0] if row.multipliers else None,
        "live": row.hooked,
        "model": _model_settings(row),
        "sample": SAMPLE
        | {"guidance_scale": row.model.guidance_scale, **row.model.sample}
        | (WIDE if row.tiled else {}),
        "samples": [_as_paths(sample) for sample in row.samples()],
    }
    if len(files) > 1:
        given["second"] = {"network": networks[1], "lora": files[1], "multiplier": STRENGTHS[1]}
    return given
