"""The trainer's schedulers, by the names its `sampler` setting takes.

Upstream: ostris/ai-toolkit@27a03a91 toolkit/sampler.py::get_sampler
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from ..core.errors import MissingDependencyError
from ..core.missing import pip_command
from ._quiet import quiet_libraries

LCM_STEPS = 50  # steps an LCM was distilled for; it cannot take more

# sampler -> (diffusers class, arguments on top of the family's). `dpmsolver` and `k_dpmsolver`
# are absent because the trainer itself fails on them: diffusers refuses its configuration.
STOCK: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "k_lms": ("LMSDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "k_euler": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "k_dpmsolver++": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True},
    ),
    "dpmsingle": ("DPMSolverSinglestepScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm_2": ("KDPM2DiscreteScheduler", {}),
    "dpm_2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}

STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "interpolation_type": "linear",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
}
FLUX = {
    "num_train_timesteps": 1000,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


def stable_diffusion_scheduler(sampler: str, steps_offset: int) -> Any:
    """The trainer's scheduler for SD and SDXL.

    steps_offset: 1 for SD 1.5, whose pipeline rewrites the trainer's 0; 0 for SDXL, whose
    pipeline does not.
    """
    import diffusers

    if sampler == "flowmatch":
        return flow_match_scheduler({})
    if sampler == "mean_flow":
        return mean_flow_scheduler()
    if sampler == "custom_lcm":
        scheduler_class, extra = _custom_lcm_scheduler_class(), {}
    else:
        if "lms" in sampler and find_spec("scipy") is None:
            raise MissingDependencyError(
                f"the sampler {sampler!r} needs scipy; run `{pip_command('scipy')}`"
            )
        name, extra = STOCK[sampler]
        scheduler_class = getattr(diffusers, name)
    with quiet_libraries():
        return scheduler_class.from_config(
            {**STABLE_DIFFUSION, "steps_offset": steps_offset, **extra}
        )


def flux_scheduler(sampler: str) -> Any:
    """The trainer's scheduler for FLUX: `flowmatch` or `mean_flow`."""
    return mean_flow_scheduler() if sampler == "mean_flow" else flow_match_scheduler(FLUX)


def flow_match_scheduler(config: dict[str, Any]) -> Any:
    """A flow-match Euler scheduler that the Stable Diffusion pipelines can drive as well.

    The trainer names shift 3.0 for SD but loses it: its subclass takes `**kwargs`, which
    diffusers cannot fill from a config. So the shift is 1.0 wherever it is static.
    Upstream: ostris/ai-toolkit@27a03a91 toolkit/samplers/custom_flowmatch_sampler.py
    """
    return _flow_match_class()(**config)


def mean_flow_scheduler() -> Any:
    """A flow-match scheduler whose steps go all the way: x0 = x - prediction.

    Upstream: ostris/ai-toolkit@27a03a91 toolkit/samplers/mean_flow_scheduler.py
    """

    class TrainerMeanFlowScheduler(_flow_match_class()):  # type: ignore[misc]
        def step(self, model_output: Any, timestep: Any, sample: Any, **_: Any) -> tuple[Any]:
            return (sample - model_output,)

    return TrainerMeanFlowScheduler()


def _flow_match_class() -> Any:
    import diffusers

    class TrainerFlowMatchScheduler(diffusers.FlowMatchEulerDiscreteScheduler):
        init_noise_sigma = 1.0

        def scale_model_input(self, sample: Any, timestep: Any = None) -> Any:
            return sample

        def add_noise(self, sample: Any, noise: Any, timestep: Any) -> Any:
            return self.scale_noise(sample, timestep, noise)

    return TrainerFlowMatchScheduler


def _custom_lcm_scheduler_class() -> Any:
    # the stock class but for its timesteps, which reach down to the last of the 50
    # Upstream: ostris/ai-toolkit@27a03a91 toolkit/samplers/custom_lcm_scheduler.py
    import diffusers
    import numpy as np
    import torch

    class TrainerLCMScheduler(diffusers.LCMScheduler):
        def set_timesteps(  # type: ignore[override]
            self, num_inference_steps: int, device: Any = None
        ) -> None:
            super().set_timesteps(num_inference_steps, device)
            stride = self.config["num_train_timesteps"] // LCM_STEPS
            descending = np.arange(LCM_STEPS, 0, -1) * stride - 1
            chosen = np.floor(np.linspace(0, LCM_STEPS - 1, num_inference_steps)).astype(int)
            self.timesteps = torch.from_numpy(descending[chosen]).to(device, torch.long)

    return TrainerLCMScheduler
