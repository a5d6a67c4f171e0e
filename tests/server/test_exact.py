"""What comes over HTTP is the trainer's: its stored pictures, and the very bytes of the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from goldens import golden, incomparable
from harness import as_animation, as_png, compare, draw, quantize
from rows import CONTROLS, GOLDENS, PROFILES, SAMPLE, SIDES, TRIGGER, Row, all_rows, base_lora

from ai_toolkit_inference import Engine
from ai_toolkit_inference.pipelines._vendor import trainer_folder

PROFILE = PROFILES[-1]
ROWS = {row.id: row for row in all_rows(PROFILE)}
OF_MODELS = [row for row in ROWS.values() if row.dtype == "fp32" and row.case == "merged"]
OTHERS = (
    "sd15-bf16-live",
    "sd15-bf16-euler_a",
    "sdxl-bf16-fused_merged",
    "flux-bf16-stack_live",
    "flux-bf16-cached",
    "flux-bf16-qfloat8",
    "zimage_turbo-bf16-assistant_merged",
    "qwen_image_edit_plus-bf16-live",
    "krea2_o_edit-bf16-kv_cache_off",
    "wan22_14b_t2v-bf16-low",
    "ltx2-bf16-live",
)


@pytest.fixture(scope="module")
def exact(serve: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import httpx

    folders = {"lora_folder": str(GOLDENS / "loras"), "picture_folder": str(CONTROLS)}
    with (
        serve(tmp_path_factory.mktemp("exact"), **folders) as server,
        httpx.Client(base_url=server.url, timeout=120) as client,
    ):
        yield client


def body(row: Row) -> dict[str, Any]:
    """The row as a client would send it."""
    samples = row.samples()
    adapters = row.adapters(PROFILE, samples[0])
    sides = SIDES if row.model.pair else (None,)
    loras = [
        {"path": Path(file).name, "transformer": side, "network_multiplier": multiplier}
        for files, multiplier in adapters
        for file, side in zip(files, sides, strict=True)
        if file
    ]
    return {
        "model": row.model.id,
        "dtype": row.dtype,
        "trainer_version": PROFILE,
        "trigger_word": TRIGGER,
        "loras": loras,
        "mode": "live" if row.live else "as_trainer",
        "cached_text": row.cached,
        "low_vram": "on" if row.low_vram else "off",
        **quantize(row, PROFILE),
        **{field: Path(file).name for field, file in base_lora(row, PROFILE).items()},
        "prompts": [_prompt(row, sample) for sample in samples[:1]],
        "output_format": "webp" if frames(row) > 1 else "png",
    }


def frames(row: Row) -> int:
    """How many the first sample asks for."""
    return (row.model.sample | row.samples()[0]).get("num_frames", 1)


def _prompt(row: Row, sample: dict[str, Any]) -> dict[str, Any]:
    settings = SAMPLE | row.model.sample | sample
    known = ("prompt", "width", "height", "seed", "sample_steps", "neg", "num_frames", "fps")
    asked = {name: settings[name] for name in known if name in settings}
    pictures = {name: value for name, value in sample.items() if name.startswith("ctrl_i")}
    return {
        **asked,
        **pictures,
        "guidance_scale": row.model.guidance_scale,
        "sampler": row.sampler,
        "switches": dict(row.switches),
    }


def fetch(client: Any, asked: dict[str, Any]) -> bytes:
    """The file of the only output."""
    taken = client.post("/v1/inference", json=asked)
    if taken.status_code == 501 and trainer_folder() is None:
        pytest.skip(taken.json()["error"]["message"])
    assert taken.status_code == 200, taken.text
    result: dict[str, Any] = {"status": ""}
    while result["status"] in ("", "in_queue", "in_progress"):
        time.sleep(0.02)
        result = client.get(taken.json()["result_url"]).json()
    assert result["status"] == "succeeded", result["error"]
    return client.get(result["outputs"][0]["url"]).content


CLIPS = [row for row in OF_MODELS if frames(row) > 1]  # a webp has losses
PICTURES = [row for row in OF_MODELS if row not in CLIPS]


@pytest.mark.parametrize("row", PICTURES, ids=lambda row: row.id)
def test_every_models_picture_is_the_trainers(exact: Any, row: Row) -> None:
    if reason := incomparable(PROFILE, row):
        pytest.skip(reason)
    # kernels of other processors may put a stored fp32 picture a level off
    assert compare(fetch(exact, body(row)), golden(PROFILE, row)[0]).most <= 1


@pytest.mark.parametrize("name", [*OTHERS, *(row.id for row in CLIPS)])
def test_the_file_is_the_engines_byte_for_byte(exact: Any, engine: Engine, name: str) -> None:
    row = ROWS[name]
    drawn = draw(engine, row, PROFILE, row.samples()[0])
    of = as_animation if len(drawn.frames) > 1 else as_png
    assert fetch(exact, body(row)) == of(drawn)
