"""What is known about a model before any weight is loaded: one frozen ModelSpec per id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .versions import Profile


def _accept(*_: Any) -> None:
    return None


def _leave(_name: str, _module: Any) -> None:
    return None


@dataclass(frozen=True)
class Defaults:
    """The trainer's own sample settings for a model, used wherever a request leaves one open."""

    width: int  # px
    height: int  # px
    steps: int
    guidance_scale: float
    sampler: str
    num_frames: int = 1
    fps: int = 16


@dataclass(frozen=True)
class ControlImages:
    """How many pictures a model takes beside the prompt.

    index: a picture has one of two uses, which control_index chooses. alpha: of an RGBA one tells
    what to paint. doubled: a job that names its first picture `ctrl_img` shows it twice.
    """

    required: int = 0
    most: int = 0
    index: bool = False
    alpha: bool = False
    doubled: bool = False


@dataclass(frozen=True)
class Switch:
    """A setting of a few models that a job's `model_kwargs` or `sample` section turns on.

    known: the row of core.versions.CHANGES since which the trainer reads it; always if empty.
    usual: the row since which jobs of the trainer's form have it on; they never do if empty.
    """

    name: str
    known: str = ""
    usual: str = ""

    def is_on(self, asked: bool | None, profile: Profile) -> bool:
        """Whether it acts in a trainer version. asked: None is as the trainer's form has it."""
        if asked is None:
            return bool(self.usual) and profile.has(self.usual)
        return asked and (not self.known or profile.has(self.known))


@dataclass(frozen=True)
class LoraLayout:
    """How the trainer names the layers of a model in a saved LoRA file.

    prefixes: (prefix in the file, component it lies in), e.g. ("lora_unet", "unet"); the first
    is the denoiser's.
    separator: what stands for the dots of a module path, "_" (kohya) or "." (peft).
    alpha: whether the trainer writes a layer's `.alpha`, which scales it (alpha / rank).
    targets: parts of the module paths that the trainer's network covers.
    base_model: what the trainer writes as ss_base_model_version.
    original: the names of the model's first release, which files may have instead of the module
    paths: a key of adapters.names.ORIGINAL. writes_original: the trainer's files have them.
    experts: components with the high-noise and the low-noise expert, if there are two.
    """

    prefixes: tuple[tuple[str, str], ...]
    separator: str
    alpha: bool
    targets: tuple[str, ...]
    base_model: str
    original: str = ""
    writes_original: bool = False
    experts: tuple[str, ...] = ()

    @property
    def denoisers(self) -> tuple[str, ...]:
        """The components that do the denoising: one, or two experts."""
        return self.experts or (self.prefixes[0][1],)


@dataclass(frozen=True)
class BaseLoras:
    """The LoRAs that a job's `model` section may put under the one it trains.

    fields: those of its fields that the trainer reads for the model, named as in Recipe.
    by_peft: they are fused by peft and live on the weights as quantized; else both by the trainer's
    own network, which is made before quantization. layer: the one that the trainer reads the rank
    from, failing without it. blocks: part of the names of the layers that its network has.
    """

    fields: tuple[str, ...] = ()
    by_peft: bool = False
    layer: str = ""
    blocks: str = ""


@dataclass(frozen=True)
class Quantizing:
    """What of a model the trainer quantizes, where a job asks for it.

    denoiser: whether it quantizes the model at all. encoders: components that `quantize_te` is
    about. encoders_by: the job's field with their qtype, `qtype_te` or, as the denoiser's, `qtype`.
    encoders_uncast: quantized ones are not cast before, so that their fp32 buffers stay.
    keeps: patterns of modules of the denoiser that it leaves in full precision, in all versions or
    since a row of core.versions.CHANGES. offloads: components whose quantized layers it takes over
    with `layer_offloading`. recovers: whether it takes accuracy recovery adapters, which it ignores
    elsewhere. offloads_first: those that it does so with before it quantizes them.
    float8_with_assistant: the default qtype becomes float8 beside an
    assistant_lora_path.
    """

    denoiser: bool = True
    encoders: tuple[str, ...] = ()
    encoders_by: str = "qtype_te"
    encoders_uncast: bool = False
    keeps: tuple[str, ...] = ()
    keeps_since: str = ""
    recovers: bool = False
    offloads: tuple[str, ...] = ()
    offloads_first: tuple[str, ...] = ()
    float8_with_assistant: bool = False


@dataclass(frozen=True)
class ModelSpec:
    """One model id: what users choose, and the few functions of its family."""

    id: str
    title: str
    task: str  # text-to-image, edit, video
    arch: str  # the trainer's name
    repo_id: str  # Hugging Face repository the trainer loads
    pipeline: str  # diffusers class
    latent_channels: int  # of one latent: 8 x 8 px, in videos what the VAE makes of it
    multiple_of: int  # px; both sides are floored to it, as the trainer floors them
    defaults: Defaults
    samplers: tuple[str, ...]
    lora: LoraLayout
    source: str  # upstream, repo@commit path
    components: tuple[str, ...] = field(kw_only=True)  # with weights, named as in the folder
    clip_tokenizers: tuple[str, ...] = field(default=(), kw_only=True)
    render: Callable[..., Any] = field(kw_only=True, repr=False)
    build_tiny: Callable[..., Any] = field(kw_only=True, repr=False)
    # (spec, source, dtype) -> {component: module or tokenizer}, for checkpoints that no pipeline
    # class of diffusers reads
    load: Callable[..., dict[str, Any]] | None = field(default=None, kw_only=True, repr=False)
    # the trainer's module that defines the denoiser, if no class of diffusers computes the same
    network: str = field(default="", kw_only=True)
    # (component, module): makes a part of diffusers that a LoRA can change the trainer's, loaded or
    # without weights
    adapt: Callable[[str, Any], None] = field(default=_leave, kw_only=True, repr=False)
    # (row of core.versions.CHANGES, px): multiple_of in versions without that change
    multiple_of_before: tuple[str, int] | None = field(default=None, kw_only=True)
    # raises InvalidInputError for settings that the trainer's own code fails on
    check: Callable[[Any], None] = field(default=_accept, kw_only=True, repr=False)
    # (request, settings): the same for control images, called if there are any
    check_images: Callable[[Any, Any], None] = field(default=_accept, kw_only=True, repr=False)
    # further classes that model_index.json of a fitting checkpoint may name: older, or its own
    other_pipelines: tuple[str, ...] = field(default=(), kw_only=True)
    # (part, repository): what the trainer takes from another repository, as a folder may as well
    # leave out
    elsewhere: tuple[tuple[str, str], ...] = field(default=(), kw_only=True)
    single_file: bool = field(default=False, kw_only=True)  # the trainer loads one .safetensors
    # repository of all parts but the denoiser, where repo_id has that one alone
    rest_repo_id: str = field(default="", kw_only=True)
    # the component that the trainer loads from a .safetensors by itself; `load` is then given the
    # folder of the others as a fourth argument, or None for a folder with all
    part_file: str = field(default="", kw_only=True)
    # further components in the file of part_file
    in_part_file: tuple[str, ...] = field(default=(), kw_only=True)
    # the one file of repo_id that the trainer loads, instead of folders
    released_file: str = field(default="", kw_only=True)
    # (component, file): what may lie in one released file beside that one
    beside: tuple[tuple[str, str], ...] = field(default=(), kw_only=True)
    # components that the trainer does not cast after loading, so that their fp32 buffers stay
    uncast: tuple[str, ...] = field(default=(), kw_only=True)
    # what a job of the trainer's own form has as `low_vram`, where samples depend on it
    low_vram: bool = field(default=False, kw_only=True)
    # row of core.versions.CHANGES that brought the model, if not all versions have it
    since: str = field(default="", kw_only=True)
    control_images: ControlImages = field(default=ControlImages(), kw_only=True)
    base_loras: BaseLoras = field(default=BaseLoras(), kw_only=True)
    switches: tuple[Switch, ...] = field(default=(), kw_only=True)
    quantizing: Quantizing = field(default=Quantizing(), kw_only=True)
    negative_prompt: bool = field(default=True, kw_only=True)  # it changes the picture
    # what commonly makes other stacks draw otherwise; a sentence each, for the model's page
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    def grid(self, profile: Profile) -> int:
        """The multiple_of of a trainer version, px."""
        if self.multiple_of_before is None:
            return self.multiple_of
        change, before = self.multiple_of_before
        return self.multiple_of if profile.has(change) else before
