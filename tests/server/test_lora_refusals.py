"""A change to the server's LoRAs that cannot be, or may not be, changes nothing at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from lora_calls import draw, message, set_lora
from safetensors.torch import load_file, save_file

httpx = pytest.importorskip("httpx")
KEYS = {"api": "a-key-of-a-client-0", "admin": "a-key-of-an-administrator"}
WRONG = [
    ({"lora_nickname": "new", "lora_path": "missing.safetensors"}, "no LoRA 'missing.safetensors'"),
    ({"lora_nickname": "new", "lora_path": "../secret.safetensors"}, "no LoRA '../secret"),
    ({"lora_nickname": "../secret.safetensors"}, "no LoRA '../secret"),
    ({"lora_nickname": "new", "lora_path": "out.safetensors"}, "no LoRA 'out.safetensors'"),
    ({"lora_nickname": "new", "lora_path": "/etc/passwd"}, "no LoRA '/etc/passwd'"),
    ({"lora_nickname": "new", "lora_path": "broken.safetensors"}, "not a complete"),
    ({"lora_nickname": "new", "lora_path": "http://example.com/a.safetensors"}, "https://"),
    ({"lora_nickname": "new", "lora_path": "FLUX"}, "52 of 52 layers name no module of it"),
    ({"lora_nickname": ["good", "new"], "lora_path": ["GOOD", "FLUX"]}, "does not fit sd15"),
    ({"lora_nickname": ["a", "b"], "lora_path": ["GOOD"]}, "lora_path has 1 values for 2"),
    ({"lora_nickname": ["a", "b"], "strength": [1.0, 1.0, 1.0]}, "strength has 3 values for 2"),
    ({"lora_nickname": ["a", "b"], "target": []}, "target has 0 values for 2"),
    ({"lora_nickname": ["a", "a"], "lora_path": "GOOD"}, "a nickname of its own"),
    ({"lora_nickname": "", "lora_path": "GOOD"}, "lora_nickname"),
    ({"lora_nickname": " ", "lora_path": "GOOD"}, "lora_nickname"),
    ({"lora_nickname": "a", "lora_path": ""}, "lora_path"),
    ({"lora_nickname": "a", "lora_path": "GOOD", "strength": 1e9}, "strength"),
    ({"lora_nickname": "a", "lora_path": "GOOD", "merge_mode": "fuse"}, "merge_mode"),
    ({"lora_nickname": "a", "lora_path": "GOOD", "lora_alpha": 4}, "lora_alpha"),
    ({"lora_nickname": "a", "lora_path": "GOOD", "target": "transformer_2"}, "allowed: all, unet"),
    ({"lora_path": "GOOD"}, "lora_nickname"),
]


@pytest.mark.parametrize(("body", "said"), WRONG)
def test_what_fails_leaves_the_old_set(server, client, put, body, said):
    folder = server.service.settings.lora_folder
    good, flux = put(), put("flux")
    (folder / "broken.safetensors").write_bytes((folder / good).read_bytes()[:-9])
    shutil.copy(folder / good, folder.parent / "secret.safetensors")
    if not (folder / "out.safetensors").is_symlink():
        (folder / "out.safetensors").symlink_to(folder.parent / "secret.safetensors")
    set_lora(client, "style", put(seed=1), strength=0.7)
    before = client.get("/v1/list_loras").json()
    real = {"GOOD": good, "FLUX": flux}
    path = body.get("lora_path")
    if path:
        named = [real.get(one, one) for one in path] if isinstance(path, list) else real.get(path)
        body = body | {"lora_path": named or path}
    text = message(client.post("/v1/set_lora", json={"model": "sd15"} | body))
    assert said in text
    assert client.get("/v1/list_loras").json() == before


def test_a_store_that_fails_leaves_the_old_set(server, client, put, monkeypatch):
    from ai_toolkit_inference.core.errors import OutputError

    def full(*_: Any) -> None:
        raise OutputError("the disk is full")

    set_lora(client, "style", put())
    before = client.get("/v1/list_loras").json()
    monkeypatch.setattr(server.service.store, "keep_loras", full)
    assert "full" in message(set_lora(client, "other", put(seed=1)), status=507)
    monkeypatch.undo()
    assert client.get("/v1/list_loras").json() == before


def test_a_dora_is_not_merged(server, client):
    goldens = Path(__file__).parent.parent / "goldens" / "loras"
    file = next(goldens.glob("sd15*dora*.safetensors"))
    shutil.copy(file, server.service.settings.lora_folder)
    assert set_lora(client, "dora", file.name).status_code == 200
    drawn = draw(client)
    assert drawn != draw(client, loras=[])
    text = message(client.post("/v1/merge_lora_weights", json={"model": "sd15"}))
    assert f"{file.name} is a DoRA" in text
    assert draw(client) == drawn


def test_a_partial_file_is_taken_only_if_said_and_so_is_its_nickname(server, client, put):
    folder, file = server.service.settings.lora_folder, put()
    tensors = load_file(folder / file)
    strange = {name.replace("attn1_to_q", "attn9_to_q"): x for name, x in tensors.items()}
    save_file(strange, folder / "partial.safetensors")
    assert "layers name no module" in message(set_lora(client, "some", "partial.safetensors"))
    own = draw(client, loras=[{"path": "partial.safetensors", "allow_partial": True}])
    for known in ({"lora_path": "partial.safetensors", "allow_partial": True}, {}):
        body = {"model": "sd15", "lora_nickname": "some"} | known
        assert client.post("/v1/set_lora", json=body).status_code == 200
        assert draw(client) == draw(client, loras=[{"path": "some"}]) == own
    body = {"model": "sd15", "lora_nickname": "some", "allow_partial": False}
    assert "layers name no module" in message(client.post("/v1/set_lora", json=body))
    assert draw(client) == own


ROUTES = ("set_lora", "merge_lora_weights", "unmerge_lora_weights")


def test_changes_need_the_key_of_an_administrator(serve, tmp_path):
    files = {}
    for name, key in KEYS.items():
        (tmp_path / name).write_text(f"{key}\n")
        files[f"{name}_key_file"] = str(tmp_path / name)
    with serve(tmp_path, **files) as server, httpx.Client(base_url=server.url) as client:
        body = {"model": "sd15", "lora_nickname": "tiny"}
        for key, status in (("", 401), (KEYS["api"], 403), (KEYS["admin"], 200)):
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            for route in ROUTES:
                given = body if route == "set_lora" else {"model": "sd15"}
                answer = client.post(f"/v1/{route}", json=given, headers=headers)
                assert answer.status_code == status, (route, key)
            listed = client.get("/v1/list_loras", headers=headers)
            assert listed.status_code == (200 if key else 401)
            rows = listed.json().get("loaded_adapters", [])
            assert bool(rows) == (status == 200)
