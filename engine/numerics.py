"""The arithmetic setting a trainer process has, for the time of a render."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import autocast

from ..pipelines._process import ONE_AT_A_TIME


@contextmanager
def trainer_numerics(seed: int) -> Iterator[torch.Generator]:
    """Seeds all generators and pins torch's switches; the caller's come back afterwards.

    Gives the global CPU generator: what the trainer draws latents and step noise from.
    Upstream: ostris/ai-toolkit@27a03a91 toolkit/stable_diffusion_model.py::generate_images
    """
    with ExitStack() as stack:
        stack.enter_context(ONE_AT_A_TIME)
        # ComfyUI runs nodes in inference mode, where weights could not be changed later.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_rng_state())
        stack.enter_context(_torch_switches())
        for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            stack.enter_context(autocast(device, enabled=False))
        stack.enter_context(_native_attention())
        generator = torch.manual_seed(seed)
        if torch.cuda.is_available():
            torch.cuda.manual_seed(seed)
        yield generator


@contextmanager
def _rng_state() -> Iterator[None]:
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def _torch_switches() -> Iterator[None]:
    # torch's own defaults, which the trainer never changes; ComfyUI and other node packs do
    switches = [*_attributes(), *_precisions(), *_reductions()]
    before = [get() for get, _, _ in switches]
    try:
        for _, put, value in switches:
            put(value)
        yield
    finally:
        for (_, put, _), value in zip(switches, before, strict=True):
            put(value)


Switch = tuple[Callable[[], Any], Callable[[Any], Any], Any]  # its getter, its setter, our value


def _attributes() -> Iterator[Switch]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    for owner, name, value in (
        (matmul, "allow_fp16_reduced_precision_reduction", True),
        (matmul, "allow_bf16_reduced_precision_reduction", True),
        (matmul, "allow_fp16_accumulation", False),  # torch 2.7 and newer
        (cudnn, "benchmark", False),
        (cudnn, "deterministic", False),
    ):
        if hasattr(owner, name):
            yield _attribute(owner, name, value)


def _precisions() -> Iterator[Switch]:
    backends: Any = torch.backends
    yield _matmul_precision, _set_matmul_precision, "highest"
    yield _cudnn_tf32, _set_cudnn_tf32, True
    # torch 2.9 gave the same a second set of names, which also reach oneDNN on a CPU. Restoring
    # the old names sets these too, so they come last.
    if hasattr(backends, "fp32_precision"):
        yield _attribute(backends.cuda.matmul, "fp32_precision", "ieee")
        yield _attribute(backends.cudnn.conv, "fp32_precision", "tf32")
        yield _attribute(backends.cudnn.rnn, "fp32_precision", "tf32")
        yield _attribute(backends.mkldnn.matmul, "fp32_precision", "ieee")
        yield _attribute(backends.mkldnn.conv, "fp32_precision", "ieee")


def _matmul_precision() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses once both sets of names have been used; the new ones rule
        return None


def _set_matmul_precision(precision: str | None) -> None:
    if precision is not None:
        torch.set_float32_matmul_precision(precision)


def _cudnn_tf32() -> bool | None:
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


def _set_cudnn_tf32(allowed: bool | None) -> None:
    if allowed is not None:
        torch.backends.cudnn.allow_tf32 = allowed


def _reductions() -> Iterator[Switch]:
    # torch 2.5 and newer; ComfyUI turns it on
    cuda = torch.backends.cuda
    if hasattr(cuda, "allow_fp16_bf16_reduction_math_sdp"):
        get, put = (
            cuda.fp16_bf16_reduction_math_sdp_allowed,
            cuda.allow_fp16_bf16_reduction_math_sdp,
        )
        yield get, put, False


def _attribute(owner: Any, name: str, value: Any) -> Switch:
    return lambda: getattr(owner, name), lambda old: setattr(owner, name, old), value


@contextmanager
def _native_attention() -> Iterator[None]:
    # diffusers' attention backend is global to the process
    from diffusers.models.attention_dispatch import attention_backend

    with attention_backend("native"):
        yield
