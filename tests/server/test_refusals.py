"""What the native API refuses: with which status, in which words, and never with a 5xx."""

from __future__ import annotations

import json
from typing import Any

import pytest
from native_calls import SMALL, body, refused, wait


@pytest.mark.parametrize("path", ["status", "result"])
def test_unknown_requests(client: Any, path: str) -> None:
    refused(client.get(f"/v1/requests/x/{path}"), 404, "request_not_found", "no request 'x'")
    refused(client.post("/v1/requests/x%00y/cancel"), 404, "request_not_found", "no request")


@pytest.mark.parametrize("name", ["x", "x_output_0", "requests.sqlite3", "..%2Frequests.sqlite3"])
def test_unknown_files(client: Any, name: str) -> None:
    answer = client.get(f"/v1/files/{name}/content")
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"prompts": []}, "invalid_input", "prompts: "),
        ({"prompts": [SMALL] * 65}, "invalid_input", "prompts: "),
        ({"prompts": [{"width": -1}]}, "invalid_input", "prompts.0.width: "),
        ({"prompts": [{"width": 10**30}]}, "invalid_input", "prompts.0.width: "),
        ({"prompts": [{"seed": -2}]}, "invalid_input", "(received '-2')"),
        ({"prompts": [{"guidance_scale": "x"}]}, "invalid_input", "guidance_scale: "),
        ({"prompts": [{"prompt": "x" * 20_001}]}, "invalid_input", "prompts.0.prompt: "),
        ({"prompts": [SMALL | {"sampler": "x"}]}, "invalid_input", "sampler"),
        ({"prompts": [SMALL | {"switches": {"kv_cache": True}}]}, "invalid_input", "kv_cache"),
        ({"prompts": [{"sample_step": 1}]}, "invalid_input", "sample_step: there is no such field"),
        ({"hf_token": "hf_secret"}, "invalid_input", "HF_TOKEN from its own environment"),
        ({"model": "sd16"}, "model_not_found", "sd16"),
        ({"weights": "sd15"}, "bad_checkpoint", "AITK_WEIGHTS_PATH, which it has not"),
        ({"loras": [{"path": ""}]}, "invalid_input", "loras.0.path: "),
        ({"loras": [{"path": "tiny", "transformer": "high"}]}, "invalid_input", "one transformer"),
        ({"loras": [{"path": "x"}]}, "bad_adapter", "no LoRA 'x' in the server's LoRA folder"),
        ({"output_format": "gif"}, "invalid_input", "output_format: "),
        ({"output_format": "mp4"}, "invalid_input", "a picture does not fit a .mp4 file"),
        ({"quantize": "none|x"}, "bad_adapter", "no LoRA 'x'"),
        ({"mode": "\ud800"}, "invalid_input", "mode: "),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(client: Any, fields: Any, code: str, message: str) -> None:
    text = json.dumps(body(**fields))
    answer = client.post("/v1/inference", content=text, headers=JSON)
    refused(answer, 404 if code == "model_not_found" else 400, code, message)
    assert "hf_secret" not in answer.text


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("text", "headers", "message"),
    [
        (b"", JSON, "the body"),
        (b"{", JSON, "the body is not JSON"),
        (b"[]", JSON, "the body"),
        (b'{"model": "\xff"}', JSON, ""),
        (b"[" * 100_000, JSON, ""),
        (b'{"prompts": [{"seed": 1' + b"0" * 5000 + b"}]}", JSON, ""),
        (b'{"prompts": [{"guidance_scale": NaN}]}', JSON, "guidance_scale: "),
        (b'{"prompts": [{"guidance_scale": 1e999}]}', JSON, "guidance_scale: "),
        (b'{"prompts": [{}], "\\ud800": 1}', JSON, ""),
        (b'{"prompts": [{}]}', {"Content-Type": "text/plain"}, "Content-Type: application/json"),
        (b"prompts=x", {"Content-Type": "application/x-www-form-urlencoded"}, "application/json"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bodies_that_are_no_request(client: Any, text: bytes, headers: Any, message: str) -> None:
    answer = client.post("/v1/inference", content=text, headers=headers)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_names_never_lead_out_of_the_folder(client: Any, server: Any, lora: Any) -> None:
    folder, file = server.service.settings.lora_folder, lora("sd15")
    outside = folder.parent / "outside.safetensors"
    outside.write_bytes(file.read_bytes())
    (folder / "link.safetensors").symlink_to(outside)
    names = ("../outside.safetensors", str(outside), "link.safetensors", "a\0b", "x" * 1999, "~/x")
    for name in (*names, "..", ".", "sub/../../outside.safetensors"):
        answer = client.post("/v1/inference", json=body(loras=[{"path": name}]))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_adapter"), name
        assert str(folder.parent) not in answer.json()["error"]["message"].replace(repr(name), "")


@pytest.mark.parametrize(
    "name", ["file:///etc/passwd", "http://127.0.0.1/a", "https://127.0.0.1/a"]
)
def test_links_to_this_machine_are_refused(client: Any, name: str) -> None:
    answer = client.post("/v1/inference", json=body(loras=[{"path": name}]))
    if answer.status_code == 200:
        result = wait(client, answer.json()["request_id"])
        assert (result["status"], result["error"]["code"]) == ("failed", "download_failed")
    else:
        assert answer.status_code == 400


def test_methods_and_routes_that_are_not_there(client: Any) -> None:
    for method in ("OPTIONS", "HEAD", "PUT", "DELETE", "TRACE"):
        for path in ("/v1/inference", "/v1/requests", "/health", "/v1/models", "/x"):
            answer = client.request(method, path)
            assert answer.status_code in (404, 405), (method, path)
    refused(client.get("/v1/inference"), 405, "method_not_allowed", "Method Not Allowed; see /docs")
    refused(client.get("/v1/x"), 404, "not_found", "GET /v1/x: Not Found; see /docs")


def test_an_unforeseen_error_says_nothing_of_the_inside(
    client: Any, server: Any, monkeypatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(server.service.store, "newest", fail)
    answer = client.get("/v1/requests")
    refused(answer, 500, "error", "RuntimeError in the server; its log says more")
    assert "secret" not in answer.text
    assert answer.headers["x-should-retry"] == "false"  # OpenAI's clients repeat a 5xx otherwise
