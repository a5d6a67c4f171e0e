"""Trainer versions as profiles: what changed between them, asked for by name.

A profile answers `has(change)` for every row of CHANGES; nothing else compares version numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .errors import InvalidInputError, one_of


@dataclass(frozen=True)
class Change:
    """One behaviour of the trainer that is not the same in all of its versions.

    of_adapter: it concerns one adapter by itself, so that others may differ beside it.
    of_cached_text: it concerns prompts only that were encoded before training.
    of_quantized: it concerns quantized models only. of_choice: it brought something to choose, and
    changed nothing for who does not.
    arch: how the trainer's names of the models it concerns start; of all if empty.
    """

    name: str
    since: str  # first trainer version that has it
    what: str
    source: str
    of_adapter: bool = False
    of_cached_text: bool = False
    of_quantized: bool = False
    of_choice: bool = False
    arch: str = ""


CHANGES = (
    Change(
        "clip_prompt_without_ftfy",
        "0.9.1",
        "CLIP prompts are tokenized as typed; before, ftfy repaired them first",
        "ostris/ai-toolkit@27a03a91 requirements_base.txt (transformers 4.57.3 to 5.5.3)",
    ),
    Change(
        "trigger_in_cached_text",
        "0.10.28",
        "[trigger] and [name] are replaced also in prompts that were encoded before training; "
        "before, they stood there as typed",
        "ostris/ai-toolkit@27a03a91 extensions_built_in/sd_trainer/SDTrainer.py",
        of_cached_text=True,
    ),
    Change(
        "lokr_by_factors",
        "0.10.24",
        "live LoKr on Linear layers is computed factor by factor in the dtype of the output; "
        "before, as one layer with the summed weight",
        "ostris/ai-toolkit@27a03a91 toolkit/models/lokr.py::LokrModule._call_forward_fast_linear",
        of_adapter=True,
    ),
    Change(
        "vae_norm_in_fp32",
        "0.9.1",
        "the VAE of Qwen-Image normalises bf16 and fp16 in fp32; before, in their own precision",
        "ostris/ai-toolkit@27a03a91 requirements_base.txt (diffusers 072d15ee to dc8d9032)",
    ),
    Change(
        "qwen_edit_upright",
        "0.7.33",
        "the text encoder of Qwen-Image-Edit is shown control images with their sides as they "
        "are; before, with height and width swapped",
        "ostris/ai-toolkit@4ef5cbe5 extensions_built_in/diffusion_models/qwen_image/",
        arch="qwen_image_edit",
    ),
    Change(
        "qwen_vl_positions_in_line",
        "0.9.1",
        "Qwen-Image-Edit's text encoder counts the tokens of a picture one by one, like words; "
        "before, by row and column",
        "ostris/ai-toolkit@27a03a91 requirements_base.txt (transformers 4.57.3 to 5.5.3)",
        arch="qwen_image_edit",
    ),
    Change(
        "qwen_tiled_vae",
        "0.10.22",
        "with low_vram, which is on in jobs of the trainer's form, the VAE of Qwen-Image works in "
        "tiles of 256 px; before, at once",
        "ostris/ai-toolkit@fe824871 extensions_built_in/diffusion_models/qwen_image/",
        arch="qwen_image",
    ),
    Change(
        "z_image_guidance_above_zero",
        "0.7.25",
        "Z-Image is guided whenever guidance is above 0; before, above 1",
        "ostris/ai-toolkit@27a03a91 requirements_base.txt (diffusers 8600b4c1 to 072d15ee)",
        arch="zimage",
    ),
    Change(
        "z_image_mask_where_needed",
        "0.9.1",
        "Z-Image masks its attention only where lengths differ; before, always, which computes "
        "the same by another kernel",
        "ostris/ai-toolkit@27a03a91 requirements_base.txt (diffusers 072d15ee to dc8d9032)",
        arch="zimage",
    ),
    Change(
        "z_image_sides_of_16",
        "0.9.14",
        "the sides of a Z-Image sample are multiples of 16 px; before, of 32 px",
        "ostris/ai-toolkit@ef57c107 extensions_built_in/diffusion_models/z_image/z_image.py",
        arch="zimage",
    ),
    Change(
        "z_image_guidance_from_one",
        "0.10.21",
        "1 stands for no guidance of Z-Image, so that 1 is subtracted; before, 0 did",
        "ostris/ai-toolkit@6233efe1 extensions_built_in/diffusion_models/z_image/z_image.py",
        arch="zimage",
    ),
    Change(
        "z_image_steps_all_count",
        "0.10.24",
        "the last of N steps of Z-Image starts at 1/N of the way; before, at its end, so that it "
        "changed nothing",
        "ostris/ai-toolkit@27a03a91 requirements_base.txt (diffusers dc8d9032 to c9438378)",
        arch="zimage",
    ),
    Change(
        "flux2_klein",
        "0.7.20",
        "the trainer has FLUX.2 Klein",
        "ostris/ai-toolkit@a6da9e37 extensions_built_in/diffusion_models/flux2/",
        arch="flux2_klein",
    ),
    Change(
        "krea2",
        "0.10.17",
        "the trainer has Krea 2",
        "ostris/ai-toolkit@99be3d96 extensions_built_in/diffusion_models/krea2/",
        arch="krea2",
    ),
    Change(
        "krea2_edit",
        "0.10.20",
        "the trainer has the edit variants of Krea 2",
        "ostris/ai-toolkit@b1e1a834 extensions_built_in/diffusion_models/krea2/",
        arch="krea2:o_edit",
    ),
    Change(
        "krea2_references_apart",
        "0.10.22",
        "Krea 2's control images see only one another, and fill the area of the sample; before, "
        "they saw everything, and were only shrunk to a million pixels (defaults of the trainer's "
        "UI)",
        "ostris/ai-toolkit@a4bbe167 extensions_built_in/diffusion_models/krea2/",
        arch="krea2:o_edit",
    ),
    Change(
        "krea2_guidance_from_one",
        "0.10.21",
        "1 stands for no guidance of Krea 2, so that 1 is subtracted; before, 0 did",
        "ostris/ai-toolkit@6233efe1 extensions_built_in/diffusion_models/krea2/krea2.py",
        arch="krea2",
    ),
    Change(
        "wan_euler_sampler",
        "0.9.3",
        "Wan is sampled by Euler steps, its noise levels shifted twice; before, by UniPC",
        "ostris/ai-toolkit@ab1ee4df toolkit/models/wan21/wan21.py",
        arch="wan",
    ),
    Change(
        "wan_image_by_torchvision",
        "0.9.1",
        "the picture that a Wan 2.1 clip starts from is shrunk for CLIP by torchvision; before, by "
        "Pillow",
        "ostris/ai-toolkit@27a03a91 requirements_base.txt (transformers 4.57.3 to 5.5.3)",
        arch="wan21_i2v",
    ),
    Change(
        "umt5_prompt_not_normalized",
        "0.9.3",
        "Wan's prompts are tokenized as they are after cleaning; before, Unicode's compatible "
        "characters were made one first",
        "ostris/ai-toolkit@ab1ee4df toolkit/models/loaders/umt5.py",
        arch="wan",
    ),
    Change(
        "wan_vae_norm_in_fp32",
        "0.10.22",
        "the VAE of Wan normalises bf16 and fp16 in fp32; before, in their own precision",
        "ostris/ai-toolkit@883d60eb toolkit/models/wan21/autoencoder_kl_wan.py",
        arch="wan",
    ),
    Change(
        "wan_tiled_vae",
        "0.10.22",
        "with low_vram, which is on in jobs of the trainer's form for Wan 2.2, the VAE of Wan "
        "decodes in tiles of 256 px; before, at once",
        "ostris/ai-toolkit@886c2aec toolkit/models/wan21/wan21.py::Wan21.use_vae_tiling",
        arch="wan",
    ),
    Change(
        "ltx2_prompt_unpadded",
        "0.7.21",
        "LTX-2's prompt is encoded by itself and what it came to padded with zeros; before, "
        "padding was encoded with it",
        "ostris/ai-toolkit@1ce24287 extensions_built_in/diffusion_models/ltx2/ltx2.py",
        arch="ltx2",
    ),
    Change(
        "ltx2_clean_guidance",
        "0.7.25",
        "LTX-2 is guided between clean predictions, its noise levels are shifted as for 4096 "
        "tokens, its latents scaled back in the model's precision; before, between velocities, by "
        "the number of tokens, in fp32",
        "ostris/ai-toolkit@859635e9 requirements.txt (diffusers 8600b4c1 to 072d15ee)",
        arch="ltx2",
    ),
    Change(
        "ltx2.3",
        "0.7.25",
        "the trainer has LTX-2.3",
        "ostris/ai-toolkit@859635e9 extensions_built_in/diffusion_models/ltx2/ltx2.py",
        arch="ltx2.3",
    ),
    Change(
        "ltx2_decoded_by_frames",
        "0.7.30",
        "with low_vram, which is on in jobs of the trainer's form, LTX-2's frames are decoded 16 "
        "at a time; before, in tiles of 256 px",
        "ostris/ai-toolkit@7f3309b2 extensions_built_in/diffusion_models/ltx2/ltx2.py",
        arch="ltx2",
    ),
    Change(
        "ltx2_tokens_reversed",
        "0.10.24",
        "the connectors of LTX-2 are given a prompt's tokens last to first; before, in their order",
        "ostris/ai-toolkit@27a03a91 requirements_base.txt (diffusers dc8d9032 to c9438378)",
        arch="ltx2",
    ),
    Change(
        "wan22_ends_in_full_precision",
        "0.10.22",
        "a quantized Wan 2.2 keeps its embedders and last projection in full precision; before, "
        "they were quantized, too",
        "ostris/ai-toolkit@e7951ad2 extensions_built_in/diffusion_models/wan22/",
        arch="wan22",
        of_quantized=True,
    ),
    Change(
        "z_image_ends_in_full_precision",
        "0.10.24",
        "a quantized Z-Image keeps its embedders and last layer in full precision; before, they "
        "were quantized, too",
        "ostris/ai-toolkit@28f2c0ac toolkit/models/v2/z_image.py",
        arch="zimage",
        of_quantized=True,
    ),
    Change(
        "krea2_ends_in_full_precision",
        "0.10.24",
        "a quantized Krea 2 keeps its first, last and time layers in full precision; before, they "
        "were quantized, too",
        "ostris/ai-toolkit@7602e476 extensions_built_in/diffusion_models/krea2/krea2.py",
        arch="krea2",
        of_quantized=True,
    ),
    Change(
        "int8_qtype",
        "0.8.0",
        "the trainer has the qtype int8",
        "ostris/ai-toolkit@17153583 toolkit/util/quantize.py",
        of_choice=True,
    ),
    Change(
        "orbit_qtypes",
        "0.10.22",
        "the trainer has the qtypes orbit2 to 4 and orbitvq2 to 4",
        "ostris/ai-toolkit@5a9b5bde toolkit/util/orbit_quant.py",
        of_choice=True,
    ),
    Change(
        "convrot_qtypes",
        "0.10.22",
        "the trainer has the qtypes convrot4 and convrot8",
        "ostris/ai-toolkit@96a3a061 toolkit/util/convrot_quant.py",
        of_choice=True,
    ),
    Change(
        "convrot_packed_qtypes",
        "0.10.24",
        "the trainer has the qtypes convrotint2 to 8, convrotbitnet and convrotcomfyw4a4",
        "ostris/ai-toolkit@cf0db39e toolkit/util/convrot_quant.py",
        of_choice=True,
    ),
    Change(
        "nvfp4_qtype",
        "0.12.2",
        "the trainer has the qtype nvfp4",
        "ostris/ai-toolkit@8502a845 toolkit/util/nvfp4_quant.py",
        of_choice=True,
    ),
)


@dataclass(frozen=True)
class Profile:
    """How the trainer sampled at one of its versions."""

    version: str
    commit: str

    def changes(
        self, arch: str, cached_text: bool = False, quantized: bool = False
    ) -> tuple[str, ...]:
        """Names of the rows of CHANGES that this version has and that concern a whole model.

        arch: the trainer's name of the model. cached_text: with those for such prompts.
        quantized: with those for quantized models.
        """
        rows = (row for row in CHANGES if arch.startswith(row.arch) and not row.of_adapter)
        rows = (row for row in rows if cached_text or not row.of_cached_text)
        rows = (row for row in rows if quantized or not row.of_quantized)
        rows = (row for row in rows if not row.of_choice)
        return tuple(row.name for row in rows if self.has(row.name))

    def has(self, change: str) -> bool:
        """Whether this version already behaves as the named row of CHANGES says."""
        row = next((row for row in CHANGES if row.name == change), None)
        if row is None:
            raise KeyError(f"no version change is called {change!r}")
        return _numbers(self.version) >= _numbers(row.since)


PROFILES = (
    Profile("0.7.19", "73dedbf662ca604a3035daff2d2ba4635473b7bd"),
    Profile("0.12.26", "27a03a91f23eb1b757d5ec2e80ee3e129cfcc350"),
)
LATEST = PROFILES[-1]
TRAINER_VERSIONS = ("auto", *(profile.version for profile in PROFILES))


def get_profile(version: str) -> Profile:
    """The profile of one pinned trainer version. Raises InvalidInputError for any other."""
    for profile in PROFILES:
        if profile.version == version:
            return profile
    raise one_of("trainer version", version, TRAINER_VERSIONS[1:])


def profile_for_adapters(
    metadata: tuple[Mapping[str, str], ...],
    arch: str = "",
    cached_text: bool = False,
    quantized: bool = False,
) -> Profile:
    """The profile for `auto`: of the trainer that saved the adapters, or the newest without any.

    A version that is not pinned has the changes up to it, and the commit of the newest pinned
    one that is not newer. arch: the trainer's name of the model they are for. cached_text: the
    prompt is one encoded before training. quantized: the model is.
    Raises InvalidInputError when adapters need different behaviour of it.
    """
    versions = {version for meta in metadata if (version := trainer_version(meta))}
    profiles = sorted(map(_profile_of, versions), key=lambda p: _numbers(p.version))
    if len({profile.changes(arch, cached_text, quantized) for profile in profiles}) > 1:
        raise InvalidInputError(
            "the LoRAs were saved by trainer versions that sample differently "
            f"({', '.join(profile.version for profile in profiles)}); choose trainer_version "
            "yourself"
        )
    return profiles[-1] if profiles else LATEST


def trainer_version(metadata: Mapping[str, str]) -> str | None:
    """The trainer's version as its `software` metadata field records it, or None.

    Upstream: ostris/ai-toolkit@27a03a91 info.py::software_meta
    """
    try:
        software = json.loads(metadata.get("software", ""))
    except (ValueError, RecursionError):
        return None
    if not isinstance(software, dict) or software.get("name") != "ai-toolkit":
        return None
    version = str(software.get("version", ""))
    return version if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})*", version) else None


def _profile_of(version: str) -> Profile:
    not_newer = [p for p in PROFILES if _numbers(p.version) <= _numbers(version)]
    return replace(not_newer[-1] if not_newer else PROFILES[0], version=version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
