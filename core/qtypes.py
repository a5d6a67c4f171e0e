"""The trainer's qtypes: its names of the ways to hold weights in fewer bits."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InvalidInputError, one_of
from .versions import LATEST, Profile

AS_TRAINED, NONE = "as_trained", "none"


@dataclass(frozen=True)
class Qtype:
    """One qtype. what: for people. since: row of core.versions.CHANGES that brought it.

    replaces: modules are other ones afterwards, so that what was attached to them is lost.
    """

    name: str
    what: str
    since: str = ""
    replaces: bool = False


def _quanto(name: str, what: str) -> Qtype:
    return Qtype(name, what, replaces=True)


QTYPES = (
    _quanto("qfloat8", "8-bit floats (e4m3), a scale per row; the trainer's default"),
    _quanto("qfloat8_e4m3fn", "the same under its other name"),
    _quanto("qfloat8_e5m2", "8-bit floats (e5m2), a scale per row"),
    _quanto("qint8", "8-bit whole numbers, a scale per row"),
    _quanto("qint4", "4 bits, a scale and a shift per group of up to 128"),
    _quanto("qint2", "2 bits, a scale and a shift per group of up to 128"),
    Qtype("float8", "8-bit floats (e4m3), a scale per row, as torchao has them"),
    *(
        Qtype(f"uint{n}", f"{n} bits, a scale and a zero point per group of 64")
        for n in range(2, 8)
    ),
    Qtype("uint8", "nothing: the trainer fails at it and goes on, so weights stay as they are"),
    Qtype("int8", "8-bit whole numbers, a scale per row, as torchao has them", "int8_qtype"),
    *(
        Qtype(f"orbit{n}", f"{n} bits, rotated, one scale per row", "orbit_qtypes")
        for n in (2, 3, 4)
    ),
    *(
        Qtype(f"orbitvq{n}", f"{n} bits in lattice codes, rotated", "orbit_qtypes")
        for n in (2, 3, 4)
    ),
    Qtype("convrot8", "8-bit whole numbers, rotated, a scale per row", "convrot_qtypes"),
    Qtype("convrot4", "4-bit floats (e2m1), rotated, a scale per 16", "convrot_qtypes"),
    *(
        Qtype(f"convrotint{n}", f"{n} bits, rotated, a scale per group", "convrot_packed_qtypes")
        for n in range(2, 9)
    ),
    Qtype("convrotbitnet", "convrotint2 in 1.6 bits", "convrot_packed_qtypes"),
    Qtype("convrotcomfyw4a4", "4 bits, rotated, a scale per row", "convrot_packed_qtypes"),
    Qtype("nvfp4", "4-bit floats (e2m1), a scale per 16", "nvfp4_qtype"),
)
NAMES = tuple(qtype.name for qtype in QTYPES)
BY_NAME = {qtype.name: qtype for qtype in QTYPES}


def split_quantize(text: str) -> tuple[str, str]:
    """(what is chosen, file of an accuracy recovery adapter or "") of a Recipe's `quantize`.

    Raises InvalidInputError unless it is as_trained, none, a qtype, or qtype|file.
    """
    name, bar, file = text.partition("|") if isinstance(text, str) else (text, "", "")
    if name not in (NAMES if bar else (AS_TRAINED, NONE, *NAMES)):
        raise one_of("quantize", text, (AS_TRAINED, NONE, *NAMES))
    if bar and not file.strip():
        raise InvalidInputError(
            f"quantize {text!r} names no file; give {name}|FILE, with the file of an accuracy "
            "recovery adapter, or leave out the |"
        )
    if bar and BY_NAME[name].replaces:
        raise InvalidInputError(
            f"quantize {text!r}: the trainer fails at an accuracy recovery adapter with {name}; "
            "those in use are made for uint3 or uint4"
        )
    return name, file.strip()


def check_qtype(name: str, profile: Profile) -> None:
    """Raises InvalidInputError if the trainer's version does not have the qtype yet."""
    qtype = BY_NAME[name]
    if qtype.since and not profile.has(qtype.since):
        older = ", ".join(q.name for q in QTYPES if not q.since or profile.has(q.since))
        raise InvalidInputError(
            f"trainer version {profile.version} has no qtype {name}; it has {older}. Choose "
            f"trainer_version {LATEST.version}, or one of these"
        )


def check_quantize_te(text: str) -> None:
    """Raises InvalidInputError unless it is empty, none or a qtype."""
    if text and (text == AS_TRAINED or split_quantize(text)[1]):
        raise InvalidInputError(
            f"quantize_te {text!r}: a text encoder has no adapter; give none or a qtype"
        )
