"""What is compared with the trainer: a row per model, precision and way of applying adapters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GOLDENS = Path(__file__).resolve().parent.parent / "goldens"
PROFILES = ("0.7.19", "0.12.26")
DTYPES = ("fp32", "bf16")
TRIGGER = "sks"
CONTROLS = GOLDENS / "controls"
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


SD_SAMPLERS = (
    "ddim", "pndm", "lms", "k_lms", "euler", "k_euler", "euler_a", "dpmsolver++", "k_dpmsolver++",
    "dpmsingle", "heun", "dpm_2", "dpm_2_a", "lcm", "custom_lcm", "mean_flow", "flowmatch",
)  # fmt: skip
WITH_TEXT_ENCODERS = {"train_text_encoder": True}
MODELS = (
    ModelRow("sd15", "sd15", KOHYA, 7.0, SD_SAMPLERS, WITH_TEXT_ENCODERS),
    ModelRow("sdxl", "sdxl", KOHYA, 6.0, SD_SAMPLERS, WITH_TEXT_ENCODERS),
    ModelRow("flux", "flux", PEFT, 4.0, ("mean_flow",), WITH_TEXT_ENCODERS),
    ModelRow("flux_schnell", "flux", PEFT, 1.0),
    ModelRow("flex1", "flex1", PEFT, 4.0),
    ModelRow("flex2", "flex2", PEFT, 4.0, train=WITH_TEXT_ENCODERS),
    ModelRow("lumina2", "lumina2", PEFT, 4.0, ("mean_flow",), prompts=ON_GRID),
    ModelRow("qwen_image", "qwen_image", PEFT, 4.0),
    ModelRow("qwen_image_2512", "qwen_image:2512", PEFT, 4.0),
    ModelRow("zimage_turbo", "zimage:turbo", PEFT, 1.0),
    ModelRow("zimage", "zimage", PEFT, 4.0, prompts=ON_GRID),
    ModelRow("zimage_deturbo", "zimage:deturbo", PEFT, 3.0),
    ModelRow("hidream", "hidream", PEFT, 4.0, ("flowmatch",)),
    ModelRow("omnigen2", "omnigen2", PEFT, 4.0),
    ModelRow("krea2", "krea2", PEFT, 4.0, since="0.12.26"),
    ModelRow("krea2_turbo", "krea2:turbo", PEFT, 1.0, since="0.12.26"),
    ModelRow("chroma", "chroma", PEFT, 4.0),
    ModelRow("flux2", "flux2", PEFT, 4.0),
    ModelRow("flux2_diffusers", "flux2", PEFT, 4.0),
    ModelRow("flux2_klein_4b", "flux2_klein_4b", PEFT, 4.0, since="0.12.26"),
    ModelRow("flux2_klein_9b", "flux2_klein_9b", PEFT, 4.0, since="0.12.26"),
)


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


@dataclass(frozen=True)
class Row:
    """One job of the trainer: two samples, or one for rows of a sampler or of other kinds.

    multipliers: of the first adapter, per sample; empty without adapter. Different ones make it
    live, as does `hooked`. kinds: of the adapters; `lora` is the model's own network. cached: its
    prompts are encoded before training. controlled: it has the model's control images.
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

    def adapters(self, profile: str, sample: dict[str, Any]) -> list[tuple[Path, float]]:
        """Files and multipliers of what acts in a sample, in order."""
        if not self.multipliers:
            return []
        multipliers = (sample["network_multiplier"], *STRENGTHS[1:])
        files = (lora_file(self.model, profile, kind) for kind in self.kinds)
        return list(zip(files, multipliers, strict=False))


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


def lora_file(model: ModelRow, profile: str, kind: str = "lora") -> Path:
    """The adapter that the trainer of this version wrote for the model."""
    name = model.id if kind == "lora" else f"{model.id}-{kind}"
    return GOLDENS / "loras" / f"{name}-{profile}.safetensors"


def control_images(sample: dict[str, Any]) -> list[Path]:
    """The files of a sample's control images, in the order of their slots."""
    first = sample.get("ctrl_img_1", sample.get("ctrl_img"))
    names = (first, sample.get("ctrl_img_2"), sample.get("ctrl_img_3"))
    return [CONTROLS / name for name in names if name]


def _as_paths(sample: dict[str, Any]) -> dict[str, Any]:
    files = {key: str(CONTROLS / name) for key, name in sample.items() if key in CONTROL_KEYS}
    return sample | files


def job(row: Row, profile: str, checkpoint: Path) -> dict[str, Any]:
    """The row as trainer_run.py takes it."""
    files = [str(lora_file(row.model, profile, kind)) for kind in row.kinds]
    networks = [kind_of(row.model, kind).network for kind in row.kinds]
    given = {
        "name": row.id.replace(".", "_"),
        "arch": row.model.arch,
        "checkpoint": str(checkpoint),
        "dtype": row.dtype,
        "sampler": row.sampler or None,
        "trigger_word": TRIGGER,
        "network": networks[0],
        "train": {"unload_text_encoder": True} if row.cached else row.model.train,
        "lora": files[0] if row.multipliers else None,
        "live": row.hooked,
        "model": row.model.model,
        "sample": {**SAMPLE, "guidance_scale": row.model.guidance_scale, **row.model.sample},
        "samples": [_as_paths(sample) for sample in row.samples()],
    }
    if len(files) > 1:
        given["second"] = {"network": networks[1], "lora": files[1], "multiplier": STRENGTHS[1]}
    return given
