"""Where a recipe's weights are on disk: found, downloaded, or made."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ..core.errors import CheckpointError, DownloadError, InvalidInputError
from ..core.specs import ModelSpec
from ..pipelines._loading import check_folder, check_index, part_path
from ..pipelines._single_file import check_single_file
from ._hub import fetch_repository
from .downloads import fetch_adapter, is_remote

# all but the weights
CONFIGS = ["*.json", "*/*.json", "*/merges.txt", "*/*.jinja", "*/*.model"]
PART_ENDINGS = (".json", ".txt", ".jinja", ".model", ".safetensors")
Stamp = tuple[tuple[str, int, int], ...]
TINY_FORMAT = 1  # part of the cache path; raise it when tiny checkpoints change


def cache_folder() -> Path:
    """The folder for what can be made or fetched again: AITK_CACHE, or one in the user's cache."""
    folder = os.environ.get("AITK_CACHE") or Path.home() / ".cache" / "ai-toolkit-inference"
    return Path(folder)


def find_weights(
    spec: ModelSpec, weights: str, on_status: Callable[[str], None]
) -> tuple[Path, Path | None]:
    """The checkpoint of a recipe: (folder, None), or (single file, folder of its configs).

    weights: "huggingface", "tiny", a folder, or a .safetensors file.
    Raises CheckpointError if it is not there or is another model's.
    """
    if weights == "tiny":
        return tiny_folder(spec), None
    if weights == "huggingface":
        return _download(spec, on_status), None
    path = check_local(spec, weights)
    if path.is_dir():
        return path, None
    if (configs := _configs_beside(spec, path)) is not None:
        return path, configs
    if spec.released_file:  # the other parts are elsewhere
        return path, None
    short = "other files" if spec.part_file else "configuration"
    kinds = short if spec.part_file else f"{short} and tokenizer files"
    repository = spec.rest_repo_id or spec.repo_id
    instead = f"put the repository's {kinds} into {path.with_suffix('')}"
    patterns = _all_but(spec, spec.part_file) if spec.part_file else CONFIGS
    return path, _fetch(repository, patterns, on_status, instead)


def fetch_elsewhere(spec: ModelSpec, rest: Path, on_status: Callable[[str], None]) -> None:
    """Fetches the parts that a checkpoint has in other repositories, which are read by name.

    rest: the checkpoint's folder, or its single file where it has none.
    """
    wanted: dict[str, list[str]] = {}
    for name, place in spec.elsewhere:
        if part_path(spec, rest, name) == place:
            owner, repository, *folder = place.split("/")
            inside = f"{'/'.join(folder)}/*" if folder else "*"
            patterns = [inside + ending for ending in PART_ENDINGS]
            wanted.setdefault(f"{owner}/{repository}", []).extend(patterns)
    for repository, patterns in wanted.items():
        _fetch(repository, patterns, on_status)


def _configs_beside(spec: ModelSpec, path: Path) -> Path | None:
    # the folder called as the file; of a model's part also the folder that it lies in
    folders = (path.with_suffix(""), path.parent) if spec.part_file else (path.with_suffix(""),)
    for folder in folders:
        if (folder / "model_index.json").is_file():  # not just a folder of the same name
            if spec.part_file:
                beside = (name for name, file in spec.beside if path.with_name(file).is_file())
                check_folder(spec, folder, (spec.part_file, *spec.in_part_file, *beside))
            else:
                check_index(spec, folder)
            return folder
    return None


def check_local(spec: ModelSpec, weights: str) -> Path:
    """The path of local weights. Raises CheckpointError if they cannot be this model's."""
    path = Path(weights).expanduser()
    if os.path.isdir(path):  # Path.is_dir raises for a name that is too long
        check_folder(spec, path)
        return path
    if not os.path.isfile(path):
        raise CheckpointError(
            f"there are no weights at {weights}; give a folder, a .safetensors file, "
            "'huggingface' or 'tiny'"
        )
    if not (spec.single_file or spec.part_file):
        raise CheckpointError(
            f"{spec.id} is not loaded from a single file (the trainer does not either); "
            f"give a diffusers folder, as in {spec.repo_id}"
        )
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is not a .safetensors file; pickled checkpoints can run code when loaded: "
            "convert it first"
        )
    check_single_file(spec, path)
    return path


def weights_stamp(source: Path) -> Stamp:
    """Size and time of every weights file of a checkpoint; other ones mean other weights."""
    files = [source] if os.path.isfile(source) else sorted(source.glob("*/*.safetensors"))
    return tuple((str(file), (stat := file.stat()).st_mtime_ns, stat.st_size) for file in files)


def find_adapter(
    spec: ModelSpec,
    weights: str,
    path: str,
    downloads: Path,
    on_status: Callable[[str], None],
) -> Path:
    """The file of an adapter: `tiny` is a random one for the tiny weights.

    downloads: the folder that addresses are fetched into, once.
    """
    if path != "tiny":
        return fetch_link(path, downloads, on_status)
    if weights != "tiny":
        raise InvalidInputError(
            f"the LoRA 'tiny' fits the weights 'tiny' only, not {weights!r}; choose a trained LoRA"
        )
    return tiny_lora(spec)


def fetch_link(path: str, downloads: Path, on_status: Callable[[str], None]) -> Path:
    """The file at a path, or behind an address."""
    if is_remote(path):
        return fetch_adapter(path, downloads, on_status)
    return Path(path).expanduser()


def tiny_lora(spec: ModelSpec, seed: int = 0) -> Path:
    """The random LoRA for a model's tiny checkpoint in the cache, made on first use."""
    return _tiny_lora(spec, seed, "lora")


def tiny_base_lora(spec: ModelSpec) -> Path:
    """Another one, for the denoiser alone, as a job's `model` section names them."""
    alone = replace(spec.lora, prefixes=spec.lora.prefixes[:1])
    return _tiny_lora(replace(spec, lora=alone), 1, "base-lora")


def _tiny_lora(spec: ModelSpec, seed: int, name: str) -> Path:
    from ..adapters.tiny import write_tiny_lora
    from ..pipelines._loading import load_model

    folder = tiny_folder(spec, seed)
    path = folder.with_name(f"{folder.name}-{name}.safetensors")
    if not path.is_file():
        model = load_model(spec, folder, None, "fp32", torch.device("cpu"))
        write_tiny_lora(spec, model.modules, path, seed)
    return path


def tiny_folder(spec: ModelSpec, seed: int = 0) -> Path:
    """The tiny checkpoint of a model in the cache, made on first use."""
    from ..pipelines._tiny import write_tiny

    folder = cache_folder() / f"tiny-{TINY_FORMAT}" / f"{spec.id}-{seed}"
    return folder if folder.is_dir() else write_tiny(spec, folder, seed)


def _download(spec: ModelSpec, on_status: Callable[[str], None]) -> Path:
    if spec.released_file:
        return _fetch(spec.repo_id, [spec.released_file], on_status) / spec.released_file
    if spec.rest_repo_id:
        return _joined(spec, on_status)
    return _fetch(spec.repo_id, _all_but(spec, ""), on_status)


def _fetch(
    repository: str,
    patterns: list[str],
    on_status: Callable[[str], None],
    instead: str = "give local weights",
) -> Path:
    try:
        return fetch_repository(repository, patterns, on_status)
    except DownloadError as error:
        raise CheckpointError(
            f"{repository} could not be fetched from Hugging Face: {error}. Gated models need "
            f"their licence accepted on the website and a token in HF_TOKEN; or {instead}"
        ) from error


def _joined(spec: ModelSpec, on_status: Callable[[str], None]) -> Path:
    # links to the denoiser of one repository and to everything else of another
    (denoiser,) = spec.lora.denoisers
    patterns = [f"{denoiser}/*.json", f"{denoiser}/*.safetensors"]
    own = _fetch(spec.repo_id, patterns, on_status)
    rest = _fetch(spec.rest_repo_id, _all_but(spec, denoiser), on_status)
    folder = cache_folder() / "joined" / f"{spec.id}-{own.name[:12]}-{rest.name[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    parts = {part.name: part for part in rest.iterdir()} | {denoiser: own / denoiser}
    for name, part in parts.items():
        link = folder / name
        if link.resolve() != part.resolve():
            link.unlink(missing_ok=True)
            link.symlink_to(part, target_is_directory=part.is_dir())
    return folder


def _all_but(spec: ModelSpec, part: str) -> list[str]:
    # patterns of the files that a repository has without the weights of a component
    without = {part, *(name for name, _ in spec.elsewhere)}
    without |= {*spec.in_part_file} if part and part == spec.part_file else set()
    weights = (f"{name}/*.safetensors" for name in spec.components if name not in without)
    return [*CONFIGS, *weights]
