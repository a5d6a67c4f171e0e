"""Tiny random checkpoints with the real classes, in the layout the hub uses.

Every number follows from the seed and the tensor's name, never from the order of parameters or
from a trained tokenizer, so that all library versions write the same weights.
"""

from __future__ import annotations

import json
import math
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.errors import InvalidInputError, OutputError
from ..core.specs import ModelSpec
from ._loading import released_name
from ._process import ONE_AT_A_TIME
from ._vendor import PACKAGE as VENDORED

WORDS = [
    "a", "photo", "of", "cat", "dog", "woman", "red", "blue", "green", "the", "on", "with", "hat",
    "beach", "in", "portrait", "chair", "garden", "sks", "house", "mountain", "lake", "light",
    "blurry", "low", "quality", "film", "painting",
]  # fmt: skip
SD_BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
}
MAX_SEED = 2**31 - 1
WITH_HEAD = {"Qwen3Model": "Qwen3ForCausalLM"}  # a loaded class -> what its released file holds
# Brings the output of a randomly filled decoder to a standard deviation of about 0.4, so that
# pictures do not saturate. A constant: measuring it here would round differently per machine.
DECODER_GAIN = 0.9


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer to be written: its class in transformers and what writes its files."""

    class_name: str
    write: Callable[[Path], None]


def write_tiny(spec: ModelSpec, folder: Path, seed: int = 0) -> Path:
    """Writes a complete toy checkpoint of the model, at most 20 MB. Returns the folder.

    The folder appears whole or not at all; one that is there is left alone.
    seed: 0 to MAX_SEED.
    """
    if not 0 <= seed <= MAX_SEED:
        raise InvalidInputError(f"seed={seed} of a tiny checkpoint; it must be 0 to {MAX_SEED}")
    try:
        _write(spec, folder, seed)
    except OSError as error:
        raise OutputError(
            f"{folder} could not be written: {error.strerror or error}; check the folder and the "
            "free space (AITK_CACHE names the folder for what is made on first use)"
        ) from error
    return folder


def _write(spec: ModelSpec, folder: Path, seed: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".tiny-") as temporary:
        target = Path(temporary) / "checkpoint"
        target.mkdir()
        index: dict[str, Any] = {"_class_name": spec.pipeline, "_diffusers_version": "0.39.0"}
        with ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):  # building a module draws numbers
            parts = spec.build_tiny(seed)
        for name, part in parts.items():
            index[name] = _write_part(part, target / name)
        if spec.pipeline == "StableDiffusionPipeline":
            index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
        (target / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
        try:
            target.rename(folder)
        except OSError:
            if not (folder / "model_index.json").is_file():  # else another process was faster
                raise


def fill(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The module with every parameter redrawn: matrices by fan-in, norms near 1, small biases."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            name = canonical_name(name)
            # only the lower 32 bits of a seed count on a CPU
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode(), seed))
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(_scaled(name, noise))
    return module.eval().requires_grad_(False)


def canonical_name(name: str, kind: str = "") -> str:
    """A parameter's name as released checkpoints spell it, whatever transformers calls it.

    kind: the class of its model.
    """
    name = released_name(name, kind).removeprefix("text_model.").removeprefix("vision_model.")
    return "shared.weight" if name == "encoder.embed_tokens.weight" else name


def _scaled(name: str, noise: torch.Tensor) -> torch.Tensor:
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "gamma":
        return 1.0 + 0.1 * noise  # a norm of a video VAE
    if noise.dim() >= 2 and ("embed" in name or "shared" in name) and noise.shape[0] > 64:
        return noise * 0.7  # a lookup table
    if noise.dim() >= 2:
        gain = DECODER_GAIN if name == "decoder.conv_out.weight" else 1.0
        return noise * (gain / math.sqrt(noise[0].numel()))
    if leaf == "weight":
        return 1.0 + 0.1 * noise  # a norm
    return 0.05 * noise


# --- parts -----------------------------------------------------------------------------------


def clip_text_model(
    seed: int, projection: int | None = None, positions: int = 77
) -> torch.nn.Module:
    """A two-layer CLIP text encoder, 32 wide; with `projection`, the variant SDXL uses second."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    vocabulary = clip_vocabulary()
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=positions,
        hidden_act="gelu" if projection else "quick_gelu",
        projection_dim=projection or 32,
        bos_token_id=len(vocabulary) - 2,
        eos_token_id=len(vocabulary) - 1,
        pad_token_id=len(vocabulary) - 1,
    )
    build = CLIPTextModelWithProjection if projection else CLIPTextModel
    return fill(build(config), seed)


def t5_encoder(seed: int) -> torch.nn.Module:
    """A two-layer T5 v1.1 encoder, 32 wide."""
    from transformers import T5Config, T5EncoderModel

    config: dict[str, Any] = {
        "vocab_size": len(t5_vocabulary()) + 8,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    return fill(T5EncoderModel(T5Config(**config)), seed)


def autoencoder_kl(
    seed: int, latent_channels: int, scaling_factor: float, shift_factor: float | None = None
) -> torch.nn.Module:
    """An image VAE of factor 8; without quant convolutions when it has a shift (as FLUX's)."""
    from diffusers import AutoencoderKL

    plain = shift_factor is None
    config: dict[str, Any] = {
        "block_out_channels": (16,) * 4,
        "layers_per_block": 1,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": latent_channels,
        "norm_num_groups": 4,
        "sample_size": 64,
        "scaling_factor": scaling_factor,
        "shift_factor": shift_factor,
        "use_quant_conv": plain,
        "use_post_quant_conv": plain,
        "force_upcast": scaling_factor == 0.13025,
    }
    return fill(AutoencoderKL(**config), seed)


def unet(seed: int, **config: Any) -> torch.nn.Module:
    """A UNet2DConditionModel of 4 latent channels."""
    from diffusers import UNet2DConditionModel

    return fill(
        UNet2DConditionModel(
            sample_size=64, in_channels=4, out_channels=4, norm_num_groups=8, **config
        ),
        seed,
    )


def flux_transformer(
    seed: int, guidance: bool, double: int, single: int, **config: Any
) -> torch.nn.Module:
    """A FLUX transformer, 64 wide, of `double` joint and `single` single blocks."""
    from diffusers import FluxTransformer2DModel

    return fill(
        FluxTransformer2DModel(
            **{"in_channels": 64} | config,
            num_layers=double,
            num_single_layers=single,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=guidance,
            axes_dims_rope=(4, 6, 6),
        ),
        seed,
    )


def scheduler(name: str, **config: Any) -> Any:
    """A diffusers scheduler, as the checkpoint carries it (the trainer samples with its own)."""
    import diffusers

    return getattr(diffusers, name)(**config)


# --- tokenizers ------------------------------------------------------------------------------


def clip_vocabulary() -> list[str]:
    """CLIP byte-pair tokens: bytes, word-final bytes, the merges of WORDS, two specials."""
    alphabet = list(byte_alphabet())
    merged = [left + right for left, right in _clip_merges()]
    specials = ["<|startoftext|>", "<|endoftext|>"]
    return [*alphabet, *(letter + "</w>" for letter in alphabet), *merged, *specials]


def clip_tokenizer_files(pad: str = "<|endoftext|>") -> TokenizerFiles:
    """Writes a CLIP tokenizer's files as released ones have them."""
    vocabulary = {token: index for index, token in enumerate(clip_vocabulary())}
    merges = "\n".join(" ".join(pair) for pair in _clip_merges())
    specials = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
    }
    config = {
        **specials,
        "add_prefix_space": False,
        "do_lower_case": True,
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }

    def write(folder: Path) -> None:
        write_json(folder / "vocab.json", vocabulary)
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
        write_json(folder / "special_tokens_map.json", specials)
        write_json(folder / "tokenizer_config.json", config)

    return TokenizerFiles("CLIPTokenizer", write)


def t5_vocabulary() -> list[tuple[str, float]]:
    """T5 unigram pieces with their scores: three specials, whole words, single characters."""
    words = [("\u2581" + word, -4.0 - 0.01 * rank) for rank, word in enumerate(WORDS)]
    letters = [(chr(code), -9.0 - 0.01 * (code - 33)) for code in range(33, 127)]
    return [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -6.0), *words, *letters]


def t5_tokenizer() -> Any:
    """A T5 tokenizer of the library tokenizers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.Unigram(t5_vocabulary(), unk_id=2))
    # transformers 5 builds exactly this splitting, whatever the file says
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return tokenizer


def t5_tokenizer_files(tokenizer: Any = None) -> TokenizerFiles:
    """Writes a T5 tokenizer's files as released ones have them (tokenizer.json).

    tokenizer: one of the library tokenizers, if not the plain one.
    """
    tokenizer = tokenizer or t5_tokenizer()
    specials = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    config = {
        **specials,
        "extra_ids": 0,
        "model_max_length": 512,
        "tokenizer_class": "T5Tokenizer",
    }

    def write(folder: Path) -> None:
        tokenizer.save(str(folder / "tokenizer.json"))
        write_json(folder / "special_tokens_map.json", specials)
        write_json(folder / "tokenizer_config.json", config)

    return TokenizerFiles("T5TokenizerFast", write)


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def _clip_merges() -> list[tuple[str, str]]:
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges[(parts[0], parts[1])] = None
            parts = [parts[0] + parts[1], *parts[2:]]
    return list(merges)


# --- files -----------------------------------------------------------------------------------


def _write_part(part: Any, folder: Path) -> list[str]:
    # returns [library, class] for model_index.json
    folder.mkdir()
    if isinstance(part, TokenizerFiles):
        part.write(folder)
        return ["transformers", part.class_name]
    library, *folders, file = type(part).__module__.split(".")
    if library == "transformers":
        _write_text_encoder(part, folder)
    else:
        part.save_pretrained(folder)
    if folders[:1] == ["pipelines"]:  # a part that only one pipeline has
        library = folders[1]
    return [file if library == VENDORED else library, type(part).__name__]


def _write_text_encoder(module: Any, folder: Path) -> None:
    # Released CLIP files spell `text_model.`; transformers 5.8 and newer would drop it, and older
    # ones then silently start from random weights.
    from safetensors.torch import save_file

    kind = type(module).__name__
    module.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = [WITH_HEAD.get(kind, kind)]
    write_json(folder / "config.json", _with_released_rope(config))
    prefix = "text_model." if kind.startswith("CLIP") else "model." if kind in WITH_HEAD else ""
    prefix = "vision_model." if kind == "CLIPVisionModel" else prefix
    tensors = {}
    for name, parameter in module.named_parameters():
        name = canonical_name(name, kind)
        own = "" if name.startswith(("text_projection", "shared")) else prefix
        tensors[own + name] = parameter.detach().contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _with_released_rope(config: dict[str, Any]) -> dict[str, Any]:
    # transformers 5 writes one `rope_parameters` for the released two, which 4.57 needs
    released = {
        key: _with_released_rope(value) if isinstance(value, dict) else value
        for key, value in config.items()
    }
    rope = released.pop("rope_parameters", None)
    if rope and "full_attention" in rope:  # Gemma 3 has two kinds of layers
        released["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    if rope and "rope_theta" in rope:
        released["rope_theta"] = rope.pop("rope_theta")
        plain = rope in ({"rope_type": "default"}, {"rope_type": "axial"})  # 5.23 names Pixtral's
        released["rope_scaling"] = None if plain else rope
    return released


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file for people."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
