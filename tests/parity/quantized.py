"""The rows of quantized bases: what a job's `model` section says, by case."""

from __future__ import annotations

from typing import Any

from ai_toolkit_inference.core.qtypes import QTYPES
from ai_toolkit_inference.core.versions import get_profile

DEFAULT = {"qfloat8": {"quantize": True}}  # as the trainer's form writes it
ALL_QTYPES = ("flux", "zimage")
NOT_IN_BF16 = ("qint4",)  # optimum-quanto has no kernel for it on a CPU
# An adapter of the model itself stands for one that recovers accuracy.
RECOVERY = "recovery"
OFFLOADED = {"quantize": True, "layer_offloading": True}
MORE: dict[str, dict[str, dict[str, Any]]] = {
    "zimage": {
        "encoder_qfloat8": {"quantize": False, "quantize_te": True},
        "offloaded": OFFLOADED,
        "offloaded_qint8": {
            "quantize": True, "qtype": "qint8", "qtype_te": "qint8", "layer_offloading": True
        },
        "offloaded_int8": {
            "quantize": True, "qtype": "int8", "qtype_te": "int8", "layer_offloading": True
        },
        "recovery_uint3": {"quantize": True, "quantize_te": False, "qtype": f"uint3|{RECOVERY}"},
    },
    "wan22_14b_t2v": {"uint4": {"quantize": True, "qtype": "uint4"}},
    "lumina2": {"encoder_qfloat8": {"quantize": False, "quantize_te": True}},
}  # fmt: skip


# The cases that are tried on a base with an assistant: qtypes, or with offloaded layers.
ASSISTED = {
    "flux_schnell": ("qfloat8",),
    "zimage_turbo": ("qfloat8", "qint8", "convrot8", "offloaded"),
    "krea2_turbo": ("qfloat8",),
}


def assisted_cases(model: str, version: str) -> list[str]:
    """Those that this version of the trainer has."""
    profile, since = get_profile(version), {q.name: q.since for q in QTYPES}
    names = ASSISTED.get(model, ())
    return [name for name in names if not since.get(name) or profile.has(since[name])]


def settings_of(model: str, case: str, version: str) -> dict[str, Any]:
    """What the job says in a case, or for the qtype of that name."""
    if not case:
        return {}
    plain = {"quantize": True, "qtype": case, "qtype_te": case}
    if case == "offloaded":
        plain = OFFLOADED
    return dict(quantized_cases(model, version).get(case, plain))


def quantized_cases(model: str, version: str) -> dict[str, dict[str, Any]]:
    """Case -> the job's settings, for the cases that this version of the trainer has."""
    profile = get_profile(version)
    known = [q.name for q in QTYPES if not q.since or profile.has(q.since)]
    qtypes = {name: {"quantize": True, "qtype": name, "qtype_te": name} for name in known}
    more = MORE.get(model, {})
    cases = {case: given for case, given in more.items() if given.get("qtype_te", "uint4") in known}
    return {**(qtypes if model in ALL_QTYPES else {}), **DEFAULT, **cases}
