"""The arithmetic setting a trainer process has, for the time of a render."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def trainer_numerics(seed: int) -> Iterator[torch.Generator]:
    """Seeds all generators and pins torch's switches; the caller's come back afterwards.

    Gives the global CPU generator: what the trainer draws latents and step noise from.
    Upstream: ostris/ai-toolkit@27a03a91 toolkit/stable_diffusion_model.py::generate_images
    """
    with ExitStack() as stack:
        # ComfyUI runs nodes in inference mode, where weights could not be changed later.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_rng_state())
        stack.enter_context(_torch_switches())
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
    # torch's own defaults, which the trainer never changes and other node packs do
    switches = [
        (torch.backends.cuda.matmul, "allow_tf32", False),
        (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", True),
        (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", True),
        (torch.backends.cudnn, "allow_tf32", True),
        (torch.backends.cudnn, "benchmark", False),
        (torch.backends.cudnn, "deterministic", False),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in switches]
    try:
        for owner, name, value in switches:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


@contextmanager
def _native_attention() -> Iterator[None]:
    # diffusers' attention backend is global to the process
    from diffusers.models.attention_dispatch import attention_backend

    with attention_backend("native"):
        yield
