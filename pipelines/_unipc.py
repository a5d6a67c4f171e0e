"""UniPC for flow models as HiDream and Wan are sampled: order 2, B(h) = e^h - 1, predicting x0.

diffusers has the same method but keeps its noise levels on the device, where a GPU rounds them to
the latents' precision, and starts from another one.
Upstream: ostris/ai-toolkit@27a03a91 extensions_built_in/diffusion_models/hidream/src/schedulers/
fm_solvers_unipc.py::FlowUniPCMultistepScheduler
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

TRAIN_STEPS = 1000
FIRST_SHIFT = 3.0  # of the highest noise level, on top of the shift of all
ORDER = 2


def unipc_sigmas(steps: int, shift: float) -> np.ndarray:
    """The noise levels of the steps, float64 (steps,), falling; the one after them is 0."""
    highest = np.float32(1 - 1 / TRAIN_STEPS)
    highest = FIRST_SHIFT * highest / (1 + (FIRST_SHIFT - 1) * highest)
    sigmas = np.linspace(float(highest), 0.0, steps + 1)[:-1]
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def unipc_timesteps(sigmas: np.ndarray) -> np.ndarray:
    """The timesteps the network is given: whole numbers, int64 (steps,)."""
    return (sigmas * TRAIN_STEPS).astype(np.int64)


class FlowUniPC:
    """A scheduler for one run of a diffusers pipeline.

    shift: of the noise levels. skipped: steps at the start that are left out.
    """

    order = 1  # calls of the network per step

    def __init__(self, shift: float, skipped: int = 0) -> None:
        self.shift = shift
        self.skipped = skipped

    def noise_levels(self, steps: int) -> np.ndarray:
        """The noise levels of the steps, float64 (steps,), falling."""
        return unipc_sigmas(steps, self.shift)

    def set_timesteps(self, num_inference_steps: int, device: Any = None, **_: Any) -> None:
        """Starts a run."""
        sigmas = self.noise_levels(num_inference_steps)[self.skipped :]
        self.timesteps = torch.from_numpy(unipc_timesteps(sigmas)).to(device)
        # on the CPU, so that products with latents of another precision round once
        self.sigmas = torch.from_numpy(np.append(sigmas, 0.0).astype(np.float32))
        self.index = 0
        self.step_order = 0
        self.last_sample: torch.Tensor | None = None
        self.predictions: list[torch.Tensor] = []  # of x0, the last ones

    def step(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **_: Any
    ) -> tuple[torch.Tensor]:
        """The latents of the next noise level, in the precision of `sample`."""
        prediction = sample - self.sigmas[self.index] * model_output
        if self.last_sample is not None:
            sample = self._correct(prediction, self.last_sample)
        self.predictions = [*self.predictions, prediction][-ORDER:]
        left = len(self.timesteps) - self.index
        self.step_order = min(ORDER, left, self.step_order + 1)
        self.last_sample = sample
        moved = self._predict(sample)
        self.index += 1
        return (moved,)

    def _predict(self, sample: torch.Tensor) -> torch.Tensor:
        h, base, scale = self._advance(self.index, sample, self.predictions[-1])
        change: Any = 0
        if self.step_order == ORDER:
            slopes, _ = self._slopes(self.index, h)
            half = torch.tensor([0.5], dtype=sample.dtype, device=sample.device)
            change = torch.einsum("k,bkc...->bc...", half, slopes)
        return (base - scale * change).to(sample.dtype)

    def _correct(self, prediction: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        # the last step once more, now that the prediction at its end is known
        before = self.index - 1
        h, base, scale = self._advance(before, sample, self.predictions[-1])
        change: Any = 0
        weights = torch.tensor([0.5], dtype=sample.dtype, device=sample.device)
        if self.step_order == ORDER:
            slopes, ratio = self._slopes(before, h)
            weights = _corrector_weights(h, ratio, sample.device).to(sample.dtype)
            change = torch.einsum("k,bkc...->bc...", weights[:-1], slopes)
        change = change + weights[-1] * (prediction - self.predictions[-1])
        return (base - scale * change).to(sample.dtype)

    def _advance(self, index: int, sample: Any, prediction: Any) -> tuple[Any, Any, Any]:
        # h, the first-order result of the step from `index`, and what scales what is added to it
        sigma, start = self.sigmas[index + 1], self.sigmas[index]
        alpha = 1 - sigma
        h = self._log_ratio(index + 1) - self._log_ratio(index)
        growth = torch.expm1(-h)
        return h, sigma / start * sample - alpha * growth * prediction, alpha * growth

    def _slopes(self, index: int, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # how the prediction changed over the step before the one from `index`: (B, 1, C, H, W)
        ratio = (self._log_ratio(index - 1) - self._log_ratio(index)) / h
        earlier, later = self.predictions[-2:]
        return ((earlier - later) / ratio).unsqueeze(1), ratio

    def _log_ratio(self, index: int) -> torch.Tensor:
        sigma = self.sigmas[index]
        return torch.log(1 - sigma) - torch.log(sigma)


def _corrector_weights(h: torch.Tensor, ratio: torch.Tensor, device: Any) -> torch.Tensor:
    # solves for the weights of the earlier slope and of the new one, fp32 (2,)
    growth = torch.expm1(-h)
    phi = growth / -h - 1
    targets = [phi / growth, (phi / -h - 0.5) * 2 / growth]
    ratios = torch.tensor([ratio, 1.0], device=device)
    matrix = torch.stack([torch.pow(ratios, power) for power in range(ORDER)])
    return torch.linalg.solve(matrix, torch.tensor(targets, device=device))
