"""LTX-2's network asked for where picture and sound move, and led away from what it says otherwise.

Upstream: huggingface/diffusers@8600b4c1 and @c9438378 src/diffusers/pipelines/ltx2/pipeline_ltx2.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ._ltx2 import FRAME_RATE, encode

SKIPPED_BLOCKS = [28]  # whose attention LTX-2.3 is asked without, for comparison
Pair = tuple[torch.Tensor, torch.Tensor]  # of the picture and of the sound, packed: (B, L, C)


@dataclass(frozen=True)
class Guidance:
    """How far a prediction is led away from others.

    text: from that of the negative prompt. skipped: from one with attention left out in a block.
    alone: from one without the other modality. rescale: how much of its deviation it gets back.
    """

    text: float
    skipped: float = 0.0
    alone: float = 1.0
    rescale: float = 0.0

    def apply(
        self,
        towards: torch.Tensor,
        away: torch.Tensor | None,
        skipped: torch.Tensor | None,
        alone: torch.Tensor | None,
    ) -> torch.Tensor:
        """The guided prediction; None stands for one that was not made."""
        scales = self.text - 1, self.skipped, self.alone - 1
        guided = towards
        for scale, other in zip(scales, (away, skipped, alone), strict=True):
            if other is not None:
                guided = guided + scale * (towards - other)
        return _rescaled(guided, towards, self.rescale) if self.rescale > 0 else guided


def guidances(newer: bool, guidance_scale: float) -> tuple[Guidance, Guidance]:
    """Of the picture, and of the sound. newer: LTX-2.3, for which the trainer sets most of it."""
    if not newer:
        return Guidance(guidance_scale), Guidance(guidance_scale)
    others = {"skipped": 1.0, "alone": 3.0, "rescale": 0.7}
    return Guidance(guidance_scale, **others), Guidance(7.0, **others)


class Network:
    """The transformer with all that stays the same in a sample.

    newer: LTX-2.3. size: latent frames, height, width. length: of the sound, in latents. kept:
    (1, tokens), 1 where the picture is given, or None.
    """

    def __init__(
        self,
        context: Any,
        newer: bool,
        size: tuple[int, ...],
        length: int,
        kept: torch.Tensor | None,
    ) -> None:
        self._transformer = context.model.modules["transformer"]
        self._dtype = context.model.dtype
        self._kept = kept
        self._clean = context.profile.has("ltx2_clean_guidance")
        self._guidances = guidances(newer, context.settings.guidance_scale)
        self._guided = any(guidance.text > 1 for guidance in self._guidances)
        self._newer = newer
        self._texts = _connected_prompts(context, self._guided)
        frames, height, width = size
        device = context.model.device
        coords = self._transformer.rope.prepare_video_coords(1, *size, device, fps=FRAME_RATE)
        sound_coords = self._transformer.audio_rope.prepare_audio_coords(1, length, device)
        self._coords = coords, sound_coords
        self._fixed = {
            "num_frames": frames,
            "height": height,
            "width": width,
            "fps": FRAME_RATE,
            "audio_num_frames": length,
            "use_cross_timestep": newer,
            "return_dict": False,
        }

    def predict(self, latents: Pair, timestep: torch.Tensor, level: torch.Tensor) -> Pair:
        """The guided velocities. level: how much of the latents is noise, of 1."""
        answer = self._ask(latents, timestep, self._texts)
        away, towards = _halves(answer) if self._guided else (None, answer)
        if not self._clean:
            return towards if away is None else self._between(towards, away)
        positive = tuple(text[-1:] for text in self._texts)
        skipped = alone = None
        if self._newer:
            skipped = self._ask(
                latents, timestep, positive, spatio_temporal_guidance_blocks=SKIPPED_BLOCKS
            )
            alone = self._ask(latents, timestep, positive, isolate_modalities=True)
        others = away, skipped, alone

        def guided(modality: int) -> torch.Tensor:
            noisy = latents[modality]
            clean = noisy - towards[modality] * level
            rest = (None if x is None else noisy - x[modality] * level for x in others)
            return (noisy - self._guidances[modality].apply(clean, *rest)) / level

        return guided(0), guided(1)

    def _between(self, towards: Pair, away: Pair) -> Pair:
        video, sound = (
            other + guidance.text * (wanted - other)
            for guidance, wanted, other in zip(self._guidances, towards, away, strict=True)
        )
        return video, sound

    def _ask(self, latents: Pair, timestep: Any, texts: Any, **asked: Any) -> Pair:
        count = len(texts[0])
        # torch.cat also lays them out anew, which rounds otherwise in bf16
        pair = latents if count == 1 else [torch.cat([x] * count) for x in latents]
        video, sound = (x.to(self._dtype) for x in pair)
        coords = [x.repeat(count, *(1,) * (x.dim() - 1)) for x in self._coords]
        time = timestep.expand(count)
        video_time = time
        if self._kept is not None:  # what is given is not noisy
            video_time = time[:, None] * (1 - self._kept.repeat(count, 1))
        answers = self._transformer(
            hidden_states=video,
            audio_hidden_states=sound,
            encoder_hidden_states=texts[0],
            audio_encoder_hidden_states=texts[1],
            encoder_attention_mask=texts[2],
            audio_encoder_attention_mask=texts[2],
            timestep=video_time,
            audio_timestep=time,
            sigma=time,
            video_coords=coords[0],
            audio_coords=coords[1],
            **self._fixed,
            **asked,
        )
        return answers[0].float(), answers[1].float()


def _connected_prompts(context: Any, guided: bool) -> tuple[torch.Tensor, ...]:
    # states for the picture, for the sound, and their mask; the negative prompt's first
    settings, profile = context.settings, context.profile
    asked = [encode(context, settings.prompt)]
    if guided:
        asked.insert(0, encode(context, settings.negative_prompt))
    states, masks = (torch.cat(parts) for parts in zip(*asked, strict=True))
    return context.model.modules["connectors"](
        states,
        masks,
        normed=not profile.has("ltx2_clean_guidance"),
        reverse=profile.has("ltx2_tokens_reversed"),
    )


def _halves(answer: Pair) -> tuple[Pair, Pair]:
    (away, towards), (other, wanted) = (x.chunk(2) for x in answer)
    return (away, other), (towards, wanted)


def _rescaled(guided: torch.Tensor, towards: torch.Tensor, share: float) -> torch.Tensor:
    axes = list(range(1, guided.dim()))
    level = towards.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return share * (guided * level) + (1 - share) * guided
