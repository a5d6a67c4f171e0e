"""Every stored table is recognised as what it is, and as nothing else.

tests/adapters/layouts/ holds key -> shape tables of real files, one block of each kind: those with
"trainer" are written by tests/parity/trainer_layouts.py, the others follow the code in "source".
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from ai_toolkit_inference.adapters.layouts import LAYOUTS, describe, detect_layout
from ai_toolkit_inference.pipelines._registry import list_models

FOLDER = Path(__file__).parent / "layouts"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
# table, or the part of its name before the dash -> layout; the longest fitting entry counts
EXPECTED = {
    "sd15": "sd15",
    "sdxl": "sdxl",
    "sdxl-kohya-sgm": "sdxl_sgm",
    "flux": "flux",
    "flux-kohya": "flux_bfl",
    "flux-te": "clip_l",
    "flux2": "flux2",
    "flux2_klein_4b": "flux2_klein_4b",
    "flux2_klein_9b": "flux2_klein_9b",
    "chroma": "chroma",
    "lumina2": "lumina2",
    "omnigen2": "omnigen2",
    "hidream": "hidream",
    "qwen_image": "qwen_image",
    "zimage": "zimage",
    "wan21_1b": "wan_1b",
    "wan21_14b": "wan_14b",
    "wan21_i2v_14b": "wan_i2v",
    "wan22_14b-combined": "wan_14b_pair",
    "wan22_5b": "wan_5b",
    "ltx2": "ltx2",
    "ltx2.3": "ltx2.3",
    "krea2": "krea2",
    "minimax_h3": "minimax_h3",
}
MODELS_OF_ARCH = {
    "sd1": "sd15",
    "wan21": "wan21_14b",
    "wan21_i2v": "wan21_i2v_14b",
    "wan22_14b": "wan22_14b_t2v",
    "zimage": "zimage_turbo",
}


def table(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def expected(name: str) -> str:
    return EXPECTED.get(name) or EXPECTED[name.partition("-")[0]]


@pytest.mark.parametrize("name", NAMES)
def test_a_table_matches_its_layout_and_no_other(name):
    text = describe(table(name)["keys"])
    assert [layout.id for layout in LAYOUTS if layout.matches(text)] == [expected(name)]


@pytest.mark.parametrize("name", NAMES)
def test_a_layout_names_the_models_of_its_tables(name):
    facts = table(name)
    layout = detect_layout(facts["keys"])
    assert layout is not None
    model = {"wan21_1b": "wan21_1b"}.get(name.partition("-")[0])
    assert (model or MODELS_OF_ARCH.get(facts["arch"], facts["arch"])) in layout.models


def test_every_layout_has_a_table():
    assert {expected(name) for name in NAMES} == {layout.id for layout in LAYOUTS}


def test_layouts_have_ids_of_their_own_and_cover_every_model():
    ids = [layout.id for layout in LAYOUTS]
    assert len(set(ids)) == len(ids)
    assert {spec.id for spec in list_models()} <= {m for layout in LAYOUTS for m in layout.models}


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "transformer.", "base_model.model."])
@pytest.mark.parametrize("name", ["flux-lora", "wan21_14b-lora", "zimage-lora", "flux2-lora"])
def test_a_prefix_changes_nothing(name, prefix):
    keys = table(name)["keys"]
    other = {prefix + key.partition(".")[2]: shape for key, shape in keys.items()}
    assert detect_layout(other) == detect_layout(keys)


@pytest.mark.parametrize("name", ["flux-lora", "wan21_14b-lora", "zimage-lora", "flux2-lora"])
def test_underscores_for_dots_change_nothing(name):
    keys = table(name)["keys"]
    kohya = {}
    for key, shape in keys.items():
        layer, _, half = key.partition(".")[2].rpartition(".lora_")
        ending = {"A.weight": "down.weight", "B.weight": "up.weight"}[half]
        kohya[f"lora_unet_{layer.replace('.', '_')}.lora_{ending}"] = shape
    assert detect_layout(kohya) == detect_layout(keys)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"weight": [1]},
        {"model.layers.0.mlp.gate_proj.lora_A.weight": [4, 4096]},  # a language model's
        {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": [4, 3072]},  # of three models
        {"blocks.0.self_attn.q.lora_A.weight": [4, 999]},
        {"lora_unet_blocks_0_self_attn_q.alpha": []},
        {".alpha": [], "lora_A.weight": [], "": [0]},
    ],
)
def test_unknown_tables_have_no_layout(keys):
    assert detect_layout(keys) is None


def test_two_models_in_one_file_have_no_layout():
    assert detect_layout(table("flux-lora")["keys"] | table("zimage-lora")["keys"]) is None


@pytest.mark.parametrize(
    "key", ["_1" * 200, "1" * 399, "blocks.1" * 49, "_" * 399, "\n" * 399, "transformer_" * 33]
)
def test_hostile_keys_cost_little(key):
    keys = {f"{i}x{key[:170]}.lora_A.weight": [4, 2**63 + i] for i in range(20_000)}
    start = time.process_time()
    assert detect_layout(keys) is None
    assert time.process_time() - start < 5
    assert detect_layout({"a" * 10_000_000 + ".alpha": []}) is None
