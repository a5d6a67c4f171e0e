"""A model's weights, from a diffusers folder or a single file, cast as the trainer casts them.

Only safetensors are read and no remote code is run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..core.errors import AitkError, CheckpointError, MissingDependencyError
from ..core.missing import DIFFUSERS, install_command, pip_command
from ..core.specs import ModelSpec
from ._process import ONE_AT_A_TIME
from ._quiet import quiet_libraries
from ._text import PINS
from ._watch import Watch, told_of_files

# What a tokenizer's folder has to hold beside its configuration: the files of one of these.
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))
ENCODERS = ("text_encoder", "mllm")  # how the names of text encoders' folders start
# Where the parts of a checkpoint may come from; the last two are pipelines of diffusers with parts
# of their own.
LIBRARIES = (None, "diffusers", "transformers", "stable_diffusion", "ltx2")
# What an index lists beside parts: Krea 2's choice of hidden states.
SETTINGS = ("text_encoder_select_layers",)
# How transformers starts a parameter's name, and how released files do.
INNER_NAMES = (("model.language_model.", "model."), ("model.visual.", "visual."))
INNER_NAMES_OF = {
    "Mistral3ForConditionalGeneration": (
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("lm_head.", "language_model.lm_head."),
    ),
    "Gemma3ForConditionalGeneration": (
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
    ),
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass
class LoadedModel:
    """A model's parts in memory.

    modules: component name -> module of `dtype`. tokenizers: component name -> tokenizer.
    device: where it computes; offloaded modules wait elsewhere. folders: component name -> folder
    whose files hold its weights under the names of the module; none for a single file.
    """

    spec: ModelSpec
    dtype: torch.dtype
    device: torch.device
    modules: dict[str, Any]
    tokenizers: dict[str, Any]
    folders: dict[str, Path] = field(default_factory=dict)
    projection: torch.Tensor | None = None  # latents to RGB, (C + 1, 3), for previews

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights together."""
        return sum(module_bytes(module) for module in self.modules.values())

    def parts(self) -> dict[str, Any]:
        """Modules and tokenizers by the names diffusers pipelines take them under."""
        return {**self.modules, **self.tokenizers}


def load_model(
    spec: ModelSpec,
    source: Path,
    configs: Path | None,
    dtype: str,
    device: torch.device,
    on_status: Callable[[str], None] = lambda _: None,
) -> LoadedModel:
    """The model's parts read from `source`, on the CPU.

    source: a folder in the hub's layout, or a .safetensors file; then `configs` is a folder with
    the configurations and tokenizers of the model. device: where it will compute.
    Every part is cast with `.to(dtype)` after loading, which reaches buffers and modules that
    from_pretrained would keep in fp32.
    on_status: told what is read, several times a second; it stops the work by raising.
    Raises CheckpointError if anything is missing or of another model.
    """
    _check_tokenizer_files(spec, configs or source)
    keep_rng = torch.random.fork_rng(devices=[])  # building a module may draw numbers
    _check_libraries()
    watch = Watch(on_status, f"Loading {spec.title}")
    with (
        ONE_AT_A_TIME,
        _torch_kept(),
        quiet_libraries(),
        keep_rng,
        watch,
        told_of_files(spec, watch),
        checkpoint_errors(spec, source),
    ):
        parts = _read(spec, source, configs, DTYPES[dtype])
        whole = configs or source if configs is None or spec.part_file else None
        modules = _modules(spec, parts, source, whole, DTYPES[dtype])
        tokenizers = {
            name: part
            for name, part in parts.items()
            if name.startswith(("tokenizer", "processor"))
        } | _clip_tokenizers(spec, configs or source)
    whole_folder = configs is None and source.is_dir()
    folders = {name: source / name for name in spec.components} if whole_folder else {}
    return LoadedModel(spec, DTYPES[dtype], device, modules, tokenizers, folders)


def read_with_file(
    spec: ModelSpec,
    source: Path,
    dtype: torch.dtype,
    folder: Path | None,
    denoiser: str,
    without: tuple[str, ...] = (),
    **config: Any,
) -> Any:
    """The pipeline of a folder; or of a file with the transformer, and the rest in `folder`.

    denoiser: its class in diffusers, which reads such a file as the trainer has it read. without:
    parts that stay None. config: laid over the configuration of a transformer in a file.
    """
    import diffusers

    reading: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True}
    reading |= dict.fromkeys(without)
    if folder is not None:
        reading[spec.part_file] = getattr(diffusers, denoiser).from_single_file(
            str(source), config=str(folder), subfolder=spec.part_file, torch_dtype=dtype, **config
        )
    return getattr(diffusers, spec.pipeline).from_pretrained(str(folder or source), **reading)


def check_folder(spec: ModelSpec, folder: Path, without: tuple[str, ...] = ()) -> None:
    """Raises CheckpointError unless the folder looks like a checkpoint of this model.

    without: components that need not be there.
    """
    check_index(spec, folder)
    for name in spec.components:
        if name in without or part_path(spec, folder, name) != str(folder / name):
            continue
        if not any((folder / name).glob("*.safetensors")):
            raise CheckpointError(
                f"{folder / name} has no .safetensors weights; pickled ones (.bin, .ckpt, .pt) "
                "are not loaded because they can run code: convert them first"
            )


def check_index(spec: ModelSpec, folder: Path) -> None:
    """Raises CheckpointError unless the folder's model_index.json is of this model."""
    index = folder / "model_index.json"
    if not index.is_file():
        raise CheckpointError(
            f"{folder} has no model_index.json; give a diffusers folder of {spec.title} "
            f"(as in the repository {spec.repo_id})"
        )
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))
        found = parts["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{index} names no pipeline class ({error}); download the folder again"
        ) from error
    if found not in (spec.pipeline, *spec.other_pipelines):
        raise CheckpointError(
            f"{folder} is a {found} checkpoint; {spec.id} needs a {spec.pipeline} one"
        )
    # parts of the trainer's own classes are read by these, whatever the index names
    for name, part in () if spec.network else parts.items():
        if name not in SETTINGS and isinstance(part, list) and part and part[0] not in LIBRARIES:
            raise CheckpointError(
                f"{index}: {name} is {part}, code of its own, which is not run; "
                f"give a folder as in {spec.repo_id}"
            )


def part_path(spec: ModelSpec, source: Path, name: str) -> str:
    """Where a part's files are: a folder of the checkpoint, else the repository it comes from.

    A checkpoint as fetched may hold another version of the part than the trainer takes.
    """
    folder, repository = source / name, dict(spec.elsewhere).get(name)
    fetched = source.parent.name == "snapshots"  # so Hugging Face's cache calls them
    return repository if repository and (fetched or not folder.is_dir()) else str(folder)


def released_name(name: str, kind: str = "") -> str:
    """A parameter's name as files of models that also see have it, whatever transformers does.

    kind: the class of the model, for those whose files have names of their own.
    """
    for inner, released in INNER_NAMES_OF.get(kind, INNER_NAMES):
        if name.startswith(inner):
            return released + name.removeprefix(inner)
    return name


def module_bytes(module: torch.nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def _torch_kept() -> Iterator[None]:
    # diffusers changes these for a while, and may leave them so when it fails then
    dtype, initializers = torch.get_default_dtype(), dict(vars(torch.nn.init))
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        for name, value in initializers.items():
            setattr(torch.nn.init, name, value)


def _check_libraries() -> None:
    try:
        import diffusers  # noqa: F401
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"rendering needs diffusers and transformers ({error}); run `{install_command()}`, or "
            f"`{pip_command(DIFFUSERS, 'transformers>=4.57')}`, and restart"
        ) from error


def _read(
    spec: ModelSpec, source: Path, configs: Path | None, dtype: torch.dtype
) -> dict[str, Any]:
    import diffusers

    if spec.load is not None:
        return spec.load(spec, source, dtype, *([configs] if spec.part_file else []))
    pipeline_class = getattr(diffusers, spec.pipeline)
    arguments: dict[str, Any] = {"torch_dtype": dtype, **dict.fromkeys(spec.clip_tokenizers)}
    if spec.pipeline == "StableDiffusionPipeline":
        arguments |= {"safety_checker": None, "feature_extractor": None}
    if configs is not None:
        pipeline = pipeline_class.from_single_file(str(source), config=str(configs), **arguments)
    else:
        pipeline = pipeline_class.from_pretrained(str(source), use_safetensors=True, **arguments)
    return pipeline.components


@contextmanager
def checkpoint_errors(spec: ModelSpec, source: Path) -> Iterator[None]:
    # the libraries raise anything over a damaged file; tokenizers even a plain Exception
    try:
        yield
    except AitkError:
        raise
    except NotImplementedError as error:  # torch's, for a parameter that got no value
        raise CheckpointError(
            f"{source} lacks tensors of {spec.title}: it is damaged or of a smaller relative; "
            f"choose a complete checkpoint, as in {spec.repo_id}"
        ) from error
    except ImportError as error:
        # transformers 4.57 meets a broken vocabulary by asking for the libraries of other formats
        if error.__context__ is not None:
            raise _unreadable(spec, source, error.__context__) from error
        cure = f"run `{pip_command(error.name)}`" if error.name else "update it"
        raise MissingDependencyError(
            f"{spec.id} needs another library: {error}; {cure}, and restart"
        ) from error
    except Exception as error:
        raise _unreadable(spec, source, error) from error


def _unreadable(spec: ModelSpec, source: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(f"{source} could not be loaded as {spec.id}: {error}")


def _modules(
    spec: ModelSpec, parts: dict[str, Any], source: Path, whole: Path | None, dtype: torch.dtype
) -> dict[str, Any]:
    # whole: the folder of the text encoders' files; None where one file has all parts
    modules = {name: parts.get(name) for name in spec.components}
    for name, module in modules.items():
        if module is None:
            raise CheckpointError(f"{source} has no {name}; {spec.id} needs one")
        empty = [key for key, value in module.named_parameters() if value.is_meta]
        if empty:
            raise CheckpointError(
                f"{source}: {name} lacks {len(empty)} tensors, e.g. {empty[0]}; download it again"
            )
        if whole and name.startswith((*ENCODERS, "image_encoder")):
            folder = Path(part_path(spec, whole, name))
            if folder == whole / name:
                _check_all_read(module, folder)
        if name not in spec.uncast:
            module.to(dtype=dtype)
        module.eval().requires_grad_(False)
        if pin := PINS.get(type(module).__name__):
            pin(module)
    return modules


def _clip_tokenizers(spec: ModelSpec, folder: Path) -> dict[str, Any]:
    # transformers 4.57 would take the slow CLIP tokenizer, whose cleaning of the text depends on
    # whether ftfy is installed; the fast one reads the same everywhere.
    import transformers

    tokenizer_class: Any = transformers.CLIPTokenizerFast  # type: ignore[attr-defined]
    return {
        name: tokenizer_class.from_pretrained(str(folder), subfolder=name)
        for name in spec.clip_tokenizers
    }


def _check_all_read(module: torch.nn.Module, folder: Path) -> None:
    # transformers starts from random weights, with no more than a log line, where a file lacks a
    # tensor or spells it unlike the installed version (CLIP's `text_model.`, `vision_model.`).
    from safetensors import safe_open

    stored: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            stored |= set(file.keys())
    parameters = dict(module.named_parameters())
    levels = ("text_model.", "vision_model.")
    spelled = any(name.startswith(levels) for name in parameters)
    missing = []
    for name in parameters:
        names = {name, released_name(name, type(module).__name__), f"model.{name}"}
        names |= set() if spelled else {level + name for level in levels}
        tied = {"encoder.embed_tokens.weight", "shared.weight"}
        if not (names | (tied if name in tied else set())) & stored:
            missing.append(name)
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(parameters)} tensors as the installed "
            f"transformers names them, e.g. {missing[0]}; download the released files again"
        )


def _check_tokenizer_files(spec: ModelSpec, folder: Path) -> None:
    # Without its files transformers 5 silently builds a tokenizer that knows next to no words.
    for name in spec.components:
        if not name.startswith(ENCODERS):
            continue
        part = name.replace("text_encoder", "tokenizer").replace("mllm", "processor")
        tokenizer = folder / part
        if part_path(spec, folder, part) != str(tokenizer):
            continue
        found = {path.name for path in tokenizer.glob("*") if path.stat().st_size}
        if "tokenizer_config.json" not in found or not any(map(found.issuperset, VOCABULARIES)):
            raise CheckpointError(
                f"{tokenizer} lacks its configuration or vocabulary; download the folder again"
            )
