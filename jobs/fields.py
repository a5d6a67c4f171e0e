"""What each field of a job's configuration means for its samples: read, of no account, or missing.

Fields are those of ostris/ai-toolkit@27a03a91 and @73dedbf toolkit/config_modules.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """A field that is not reproduced. pixels: it may change the samples, or nobody knows."""

    field: str
    value: Any
    why: str
    pixels: bool = True

    def __str__(self) -> str:
        return f"{self.field} = {self.value!r}: {self.why}"


# Read when the job's samples are asked for.
USED = {
    "process": "type training_folder trigger_word network save train model sample datasets device",
    "model": """
        name_or_path arch dtype is_flux is_xl is_lumina2 low_vram assistant_lora_path
        inference_lora_path lora_path model_kwargs quantize quantize_te qtype qtype_te
        layer_offloading auto_memory accuracy_recovery_adapter""",
    "train": "dtype steps unload_text_encoder cache_text_embeddings train_text_encoder",
    "sample": """
        sampler width height neg seed walk_seed guidance_scale sample_steps network_multiplier
        guidance_rescale format num_frames fps prompts samples do_cfg_norm""",
    "samples": """
        prompt width height neg seed guidance_scale sample_steps fps num_frames ctrl_img ctrl_idx
        ctrl_img_1 ctrl_img_2 ctrl_img_3 network_multiplier""",
}
# They steer training, saving or the trainer's own memory; samples do not depend on them. What a
# network is like is in its file.
WITHOUT_EFFECT = {
    "process": """
        log_dir logging performance_log_every torch_profiler training_seed sqlite_db_path
        validation_config""",
    "model": """
        ignore_if_contains only_if_contains vae_device te_device cache_size_limit
        layer_offloading_transformer_percent layer_offloading_text_encoder_percent
        split_model_over_gpus split_model_other_module_param_count_scale unet_sample_size
        refiner_start_at""",
    "train": """
        adapter_assist_name_or_path adapter_assist_type adapter_lr adaptive_scaling_factor
        audio_loss_multiplier batch_noise_correction_scale batch_size blank_prompt_preservation
        blank_prompt_preservation_multiplier blended_blur_noise bypass_guidance_embedding
        cfg_rescale cfg_scale content_or_style correct_pred_norm correct_pred_norm_multiplier
        diff_output_preservation diff_output_preservation_class diff_output_preservation_multiplier
        differential_guidance_scale diffusion_feature_extractor_path
        diffusion_feature_extractor_weight disable_sampling do_batch_noise_correction
        do_blank_stabilization do_cfg do_differential_guidance do_fft_loss
        do_fft_velocity_equiv_weight do_guidance_loss do_guidance_loss_cfg_zero
        do_paramiter_swapping do_prior_divergence do_random_cfg do_signal_amplification
        do_signal_correction_noise dynamic_noise_offset ema_config embedding_lr
        force_consistent_noise force_first_sample gradient_accumulation
        gradient_accumulation_steps gradient_checkpointing guidance_loss_schedule
        guidance_loss_target img_multiplier inverted_mask_prior inverted_mask_prior_multiplier
        latent_feature_extractor_path latent_feature_loss_weight latent_multiplier
        learnable_snr_gos linear_timesteps linear_timesteps2 loss_target loss_type lr lr_scheduler
        lr_scheduler_params match_adapter_assist match_adapter_chance match_noise_norm
        max_cfg_scale max_denoising_steps max_grad_norm max_loss max_loss_debug
        max_negative_prompts merge_network_on_save_strength min_denoising_steps min_snr_gamma
        negative_prompt next_sample_timesteps noise_multiplier noise_offset noise_scheduler
        noisy_latent_multiplier num_train_timesteps optimal_noise_pairing_samples optimizer
        optimizer_params paramiter_swapping_factor pred_scaler prompt_dropout_prob
        prompt_saturation_chance random_noise_multiplier random_noise_shift refiner_lr reg_weight
        sdp short_and_long_captions short_and_long_captions_encoder_split
        signal_amplification_strength signal_correction_noise_scale single_item_batching
        skip_first_sample snr_gamma standardize_images standardize_latents start_step
        switch_boundary_every t0_loss_target t0_velocity_equiv_weight target_noise_multiplier
        target_norm_std target_norm_std_value text_encoder_lr timestep_type train_refiner
        train_turbo train_unet unconditional_prompt unet_lr use_ema validation_config weight_jitter
        xformers""",
    "sample": """
        sample_every sample_start_step adapter_conditioning_scale refiner_start_at extra_values""",
    "samples": "do_cfg_norm",  # the trainer reads it and then takes the sample section's
}
# Where another value than these changes the samples in a way that is not reproduced.
PLAIN = {
    "process": {
        "adapter": (None, "samples drawn through a trained adapter"),
        "embedding": (None, "a textual inversion"),
        "decorator": (None, "a decorator"),
        "guidance": (None, "guidance of its own"),
        "first_sample": (None, "other settings for the first sampling; the usual ones are taken"),
        "slider": (None, "a slider"),
        "do_lorm": (False, "LoRM replaces layers"),
    },
    "model": {
        "quantize_kwargs": ({}, "other layers are quantized"),
        "vae_path": (None, "another VAE"),
        "unet_path": (None, "another denoiser"),
        "refiner_name_or_path": (None, "a refiner"),
        "unconditional_lora_path": (None, "a LoRA for the negative prompt"),
        "use_flux_cfg": (False, "classifier-free guidance on FLUX"),
        "is_v_pred": (False, "v-prediction"),
        "attn_masking": (False, "masked text on FLUX"),
        "te_name_or_path": (None, "another text encoder"),
        "model_paths": ({}, "parts from elsewhere"),
        "experimental_xl": (False, "an experimental SDXL"),
        "text_encoder_bits": (16, "a text encoder in fewer bits"),
        "latent_space_version": (None, "another latent space"),
        "use_text_encoder_1": (True, "without the first text encoder"),
        "use_text_encoder_2": (True, "without the second text encoder"),
        "compile": (False, "compiled kernels round otherwise"),
        "block_compile": (False, "compiled kernels round otherwise"),
        "in_context": (False, "in-context samples"),
    },
    "train": {
        "free_u": (False, "FreeU"),
        "attention_backend": ("native", "another attention"),
        "show_turbo_outputs": (False, "turbo outputs"),
        "merge_network_on_save": (False, "the saved file is merged"),
    },
    "sample": {},
    "samples": {},
}
TRAINERS = ("sd_trainer", "diffusion_trainer", "ui_trainer")
FOLLOWERS = {"vae_dtype": "dtype", "te_dtype": "dtype", "extras_name_or_path": "name_or_path"}
# How the trainer's names of models start whose text encoder is shown `ctrl_img` and `ctrl_img_1`.
SHOWN_TWICE = ("qwen_image_edit_plus", "krea2:o_edit")
COMPILE_DETAILS = ("compile_mode", "compile_dynamic", "compile_fullgraph")


def problems_of(process: Mapping[str, Any], arch: str) -> Iterator[Problem]:
    """Every field of a process that its samples may depend on and that is not reproduced.

    arch: the trainer's name of the model.
    """
    yield from _kind(process)
    yield from _section("process", "", process)
    for name in ("model", "train", "sample"):
        section = process.get(name) or {}
        yield from _section(name, f"{name}.", section)
    for index, item in enumerate((process.get("sample") or {}).get("samples") or []):
        yield from _section("samples", f"sample.samples[{index}].", item)
        if arch.startswith(SHOWN_TWICE):
            yield from _first_pictures(f"sample.samples[{index}].", item)
    yield from _followers(process)


def _section(kind: str, prefix: str, section: Mapping[str, Any]) -> Iterator[Problem]:
    silent = {*USED[kind].split(), *WITHOUT_EFFECT.get(kind, "").split(), *FOLLOWERS}
    if kind == "model":
        silent.update(COMPILE_DETAILS)
    for field, value in section.items():
        if field in silent:
            continue
        if field not in PLAIN[kind]:
            yield Problem(prefix + field, value, "unknown here; it may matter", pixels=False)
            continue
        plain, why = PLAIN[kind][field]
        if value not in (plain, None):
            yield Problem(prefix + field, value, f"{why}; not reproduced")


def _followers(process: Mapping[str, Any]) -> Iterator[Problem]:
    # fields that mean nothing while they say what another one says
    model = dict(process.get("model") or {})
    model["dtype"] = (process.get("train") or {}).get("dtype", "fp32")
    for field, other in FOLLOWERS.items():
        if model.get(field) not in (None, model.get(other)):
            yield Problem(f"model.{field}", model[field], f"unlike {other}; not reproduced")


def _kind(process: Mapping[str, Any]) -> Iterator[Problem]:
    if (kind := process.get("type")) not in TRAINERS:
        yield Problem("type", kind, "another kind of process, which may draw samples otherwise")


def _first_pictures(prefix: str, item: Mapping[str, Any]) -> Iterator[Problem]:
    first, again = item.get("ctrl_img"), item.get("ctrl_img_1")
    if first and again and first != again:
        why = "the text encoder sees it beside another ctrl_img; not reproduced"
        yield Problem(f"{prefix}ctrl_img_1", again, why)
