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
    """

    name: str
    since: str  # first trainer version that has it
    what: str
    source: str
    of_adapter: bool = False


CHANGES = (
    Change(
        "clip_prompt_without_ftfy",
        "0.9.1",
        "CLIP prompts are tokenized as typed; before, ftfy repaired them first",
        "ostris/ai-toolkit@27a03a91 requirements_base.txt (transformers 4.57.3 to 5.5.3)",
    ),
    Change(
        "lokr_by_factors",
        "0.10.24",
        "live LoKr on Linear layers is computed factor by factor in the dtype of the output; "
        "before, as one layer with the summed weight",
        "ostris/ai-toolkit@27a03a91 toolkit/models/lokr.py::LokrModule._call_forward_fast_linear",
        of_adapter=True,
    ),
)


@dataclass(frozen=True)
class Profile:
    """How the trainer sampled at one of its versions."""

    version: str
    commit: str

    @property
    def changes(self) -> tuple[str, ...]:
        """Names of the rows of CHANGES that this version has, but for those of one adapter."""
        return tuple(row.name for row in CHANGES if self.has(row.name) and not row.of_adapter)

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


def profile_for_adapters(metadata: tuple[Mapping[str, str], ...]) -> Profile:
    """The profile for `auto`: of the trainer that saved the adapters, or the newest without any.

    A version that is not pinned has the changes up to it, and the commit of the newest pinned
    one that is not newer. Raises InvalidInputError when adapters need different behaviour.
    """
    versions = {version for meta in metadata if (version := trainer_version(meta))}
    profiles = sorted(map(_profile_of, versions), key=lambda p: _numbers(p.version))
    if len({profile.changes for profile in profiles}) > 1:
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
