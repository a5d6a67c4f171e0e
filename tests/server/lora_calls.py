"""What tests of the server's own LoRAs share: small requests, and changes to what acts."""

from __future__ import annotations

import time
from typing import Any

SMALL = {"prompt": "a photo of cat", "width": 64, "height": 64, "sample_steps": 2}
CLIP = SMALL | {"width": 32, "height": 32, "num_frames": 1}


def draw(client: Any, model: str = "sd15", **body: Any) -> bytes:
    """The png of a small request; no `loras` in it unless given."""
    return picture(client, ask(client, model, **body))


def ask(client: Any, model: str = "sd15", **body: Any) -> str:
    """Where the result of such a request will be."""
    prompt = CLIP if model.startswith("wan") else SMALL
    given = {"model": model, "prompts": [prompt], "output_format": "png"} | body
    answer = client.post("/v1/inference", json=given)
    assert answer.status_code == 200, answer.text
    return answer.json()["result_url"]


def picture(client: Any, url: str) -> bytes:
    """What was drawn, once it is."""
    while (result := client.get(url).json())["status"] in ("in_queue", "in_progress"):
        time.sleep(0.02)
    assert result["status"] == "succeeded", result["error"]
    return client.get(result["outputs"][0]["url"]).content


def set_lora(client: Any, nickname: Any, path: Any = None, **body: Any) -> Any:
    """The answer to this change."""
    given = {"model": "sd15", "lora_nickname": nickname, "lora_path": path}
    return client.post("/v1/set_lora", json=given | body)


def message(answer: Any, status: int = 400) -> str:
    """What an error says, which names no folder of the server."""
    assert answer.status_code == status, answer.text
    text = answer.json()["error"]["message"]
    assert "/tmp" not in text and "/output" not in text
    return text


def active(client: Any, model: str = "sd15") -> dict[str, Any]:
    """What acts by default, as it is listed."""
    return client.get("/v1/list_loras", params={"model": model}).json()["active"]
