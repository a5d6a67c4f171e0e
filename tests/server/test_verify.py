"""POST /v1/loras/verify tells how a LoRA fits and acts, without refusing one that does not."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

httpx = pytest.importorskip("httpx")
SWEEP = {"prompt": "a photo of cat", "width": 64, "height": 64, "sample_steps": 2}


def verify(client: Any, status: int = 200, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/loras/verify", json={"model": "sd15"} | body)
    assert answer.status_code == status, answer.text
    assert "/tmp" not in answer.text
    return answer.json()


def levels(client: Any, url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(client.get(url).content))).astype(float)


@pytest.fixture
def changed(server: Any, lora: Any) -> Any:
    """Puts a LoRA of sd15 into the server's folder with its tensors as change makes them."""

    def changed(name: str, change: Any) -> str:
        tensors = change(load_file(lora("sd15", 0)))
        save_file(tensors, server.service.settings.lora_folder / name)
        return name

    return changed


def test_without_a_sweep_no_weights_are_read(server, client, put):
    file, before = put(), server.service.engine.loads
    said = verify(client, loras=[{"path": file}, {"path": "tiny", "network_multiplier": 0.5}])
    assert server.service.engine.loads == before
    assert said["fits"] is True and said["acts"] is True and "scales" not in said
    first, second = said["reports"]
    assert (first["file"], second["file"]) == (file, "tiny")
    assert first["bound"] == first["layers"] == 289 and first["fits"] is True
    assert first["unbound"] == first["mismatched"] == []
    assert sum(first["modules"].values()) == first["bound"]
    assert verify(client, lora={"path": file})["reports"] == [first]


def test_what_does_not_fit_is_told_with_counts_and_names(client, put, changed):
    flux = verify(client, lora={"path": put("flux")}, sweep=SWEEP)
    report = flux["reports"][0]
    assert flux["fits"] is False and report["bound"] == 0
    assert len(report["unbound"]) == report["layers"] == 52
    assert flux["scales"] is flux["base_restored"] is flux["zero_is_base"] is None

    def cut(tensors: dict[str, Any]) -> dict[str, Any]:
        names = sorted(name for name in tensors if name.endswith("lora_up.weight"))
        tensors[names[-1]] = tensors[names[-1]][:-1].contiguous()
        return {
            name.replace("attn1_to_q", "attn9_to_q"): tensor for name, tensor in tensors.items()
        }

    file = changed("partial.safetensors", cut)
    report = verify(client, lora={"path": file})["reports"][0]
    assert report["fits"] is False and len(report["mismatched"]) == 1
    assert report["unbound"] and all("attn9_to_q" in name for name in report["unbound"])
    assert report["bound"] == report["layers"] - len(report["unbound"]) - 1
    said = verify(client, lora={"path": file, "allow_partial": True})
    assert said["fits"] is True and said["reports"][0]["unbound"] == report["unbound"]


def test_a_sweep_tells_what_each_scale_does(client, put):
    file = put()
    said = verify(client, lora={"path": file}, sweep=SWEEP | {"seed": -1, "scales": [0, 0.5, 1]})
    assert said["base_restored"] is True and said["zero_is_base"] is True
    zero, half, one = said["scales"]
    assert (zero["scale"], zero["mse"], zero["max"], zero["identical"]) == (0, 0, 0, True)
    assert 0 < half["mse"] != one["mse"] > 0 and not half["identical"] and not one["identical"]
    base = levels(client, said["base"])
    for row in said["scales"]:
        distance = levels(client, row["url"]) - base
        assert row["mse"] == pytest.approx((distance**2).mean())
        assert row["max"] == np.abs(distance).max()


def test_a_scale_multiplies_each_loras_own(client, put):
    one, two = put(seed=1), put(seed=2)
    loras = [{"path": one, "network_multiplier": 0.4}, {"path": two, "network_multiplier": -0.8}]
    halves = [lora | {"network_multiplier": lora["network_multiplier"] / 2} for lora in loras]
    swept = verify(client, loras=loras, sweep=SWEEP | {"scales": [0.5]})
    whole = verify(client, loras=halves, sweep=SWEEP | {"scales": [1]})
    assert swept["zero_is_base"] is True  # drawn all the same
    assert len(swept["scales"]) == 1 and swept["scales"][0]["mse"] > 0
    assert levels(client, swept["scales"][0]["url"]).tolist() == (
        levels(client, whole["scales"][0]["url"]).tolist()
    )


def test_the_mode_is_the_sweeps(client, put):
    drawn = {}
    for mode in ("merged", "live", "as_trainer"):
        said = verify(client, lora={"path": put()}, sweep=SWEEP | {"scales": [1], "mode": mode})
        drawn[mode] = said["scales"][0]["mse"]
    assert drawn["merged"] == drawn["as_trainer"] != drawn["live"]


def test_one_that_is_all_zeros_does_not_act(client, changed):
    file = changed("zeros.safetensors", lambda x: {n: t * ("alpha" in n) for n, t in x.items()})
    said = verify(client, lora={"path": file}, sweep=SWEEP)
    assert said["fits"] is True and said["acts"] is False
    assert [row["identical"] for row in said["scales"]] == [True] * 3


def test_the_sweep_stands_apart_from_what_the_server_has_set(client, put):
    file = put()
    alone = verify(client, lora={"path": file}, sweep=SWEEP)
    body = {"model": "sd15", "lora_nickname": "style", "lora_path": put(seed=1)}
    assert client.post("/v1/set_lora", json=body).is_success
    beside = verify(client, lora={"path": file}, sweep=SWEEP)
    assert [(r["mse"], r["max"]) for r in beside["scales"]] == [
        (r["mse"], r["max"]) for r in alone["scales"]
    ]
    by_nickname = verify(client, lora={"path": "style"})
    assert by_nickname["reports"][0]["file"] == put(seed=1)
    assert client.post("/v1/set_lora", json=body | {"lora_nickname": []}).is_success


def test_one_expert_of_a_clips_model(client, put):
    lora = {"path": put("wan22_14b_t2v"), "transformer": "low"}
    sweep = SWEEP | {"width": 32, "height": 32, "scales": [1], "mode": "live"}
    said = verify(client, model="wan22_14b_t2v", lora=lora, sweep=sweep)
    assert said["reports"][0]["modules"].keys() == {"transformer_2"}
    assert said["scales"][0]["mse"] > 0 and said["base_restored"] and said["zero_is_base"]
    frames = verify(client, 400, model="wan22_14b_t2v", lora=lora, sweep=sweep | {"num_frames": 5})
    assert "5 frames" in frames["error"]["message"]
    text = verify(client, 400, model="wan22_14b_t2v", lora={"path": put("wan22_14b_t2v")})
    assert "two experts" in text["error"]["message"]


WRONG = [
    ({"lora": {"path": "missing.safetensors"}}, 400, "no LoRA 'missing.safetensors'"),
    ({"lora": {"path": "../x.safetensors"}}, 400, "no LoRA '../x.safetensors'"),
    ({"lora": {"path": "cut.safetensors"}}, 400, "cut.safetensors is not a complete"),
    ({"lora": {"path": "tiny"}, "model": "none"}, 404, "none"),
    ({"lora": {"path": "tiny"}, "weights": "none"}, 400, "no weights 'none'"),
    ({"lora": {"path": "tiny"}, "weights": "huggingface"}, 400, "fits the weights 'tiny' only"),
    (
        {"lora": {"path": "tiny"}, "loras": [{"path": "tiny"}]},
        400,
        "`lora` with one LoRA or `loras`",
    ),
    ({}, 400, "`lora` with one LoRA or `loras`"),
    ({"loras": []}, 400, "loras"),
    ({"lora": {"path": "tiny"}, "sweep": {"scales": []}}, 400, "scales"),
    ({"lora": {"path": "tiny"}, "sweep": {"scale": [1]}}, 400, "scale"),
    ({"lora": {"path": "tiny"}, "sweep": SWEEP | {"sampler": "none"}}, 400, "sampler"),
    ({"lora": {"path": "tiny", "transformer": "low"}}, 400, "one transformer"),
]


@pytest.mark.parametrize(("body", "status", "said"), WRONG)
def test_what_cannot_be_verified_is_refused(server, client, put, body, status, said):
    folder = server.service.settings.lora_folder
    (folder / "cut.safetensors").write_bytes((folder / put()).read_bytes()[:-9])
    assert said in verify(client, status, **body)["error"]["message"]


def test_where_the_model_is_not_here_only_the_names_are_judged(client, put):
    said = verify(client, weights="huggingface", lora={"path": put()})
    report = said["reports"][0]
    assert said["fits"] is report["fits"] is report["bound"] is None and said["acts"] is True
    flux = verify(client, weights="huggingface", lora={"path": put("flux")})
    assert flux["fits"] is False and len(flux["reports"][0]["unbound"]) == 52


def test_it_needs_the_key_of_a_client(serve, tmp_path, lora):
    (tmp_path / "keys").write_text("a-key-of-a-client-0\n")
    with serve(tmp_path, api_key_file=str(tmp_path / "keys")) as server:
        file = Path(shutil.copy(lora("sd15", 0), tmp_path / "loras")).name
        body = {"model": "sd15", "lora": {"path": file}}
        url = f"{server.url}/v1/loras/verify"
        assert httpx.post(url, json=body).status_code == 401
        headers = {"Authorization": "Bearer a-key-of-a-client-0"}
        assert httpx.post(url, json=body, headers=headers, timeout=60).json()["fits"] is True
