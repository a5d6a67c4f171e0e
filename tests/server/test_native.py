"""The asynchronous API on a real server: requests, their states, their files; and what it says."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from native_calls import LONG, SMALL, body, files, refused, send, status, wait

from ai_toolkit_inference import get_model
from ai_toolkit_inference.cli.main import main


def test_a_request_from_its_start_to_its_file(client: Any, server: Any) -> None:
    id = send(client, prompts=[SMALL | {"prompt": "a cat", "seed": 7}])
    result = wait(client, id)
    assert (result["request_id"], result["model"], result["error"]) == (id, "sd15", None)
    assert result["created_at"] <= result["started_at"] <= result["finished_at"]
    assert "position" not in result and "progress" not in result
    assert result["result_url"] == f"{server.url}/v1/requests/{id}/result"
    assert result["metadata"]["prompts"][0]["prompt"] == "a cat"
    (output,) = result["outputs"]
    said = {name: output[name] for name in ("id", "format", "width", "height", "seed")}
    size = {"width": 64, "height": 64, "seed": 7}
    assert said == {"id": f"{id}_output_0", "format": "png", **size}
    assert output["info"]["prompt"] == "a cat"
    file = client.get(output["url"])
    assert file.content == Path(output["file_path"]).read_bytes()
    assert file.headers["content-type"] == "image/png"


def test_answers_are_as_they_are_described(client: Any) -> None:
    from ai_toolkit_inference.server.answers import ListAnswer, ResultAnswer, StatusAnswer

    id = send(client, model="wan21_1b", prompts=[SMALL | {"num_frames": 5}], output_format="")
    for answer in (status(client, id), wait(client, id)):
        StatusAnswer.model_validate(answer)
    result = client.get(f"/v1/requests/{id}/result").json()
    said = ResultAnswer.model_validate(result).model_dump(exclude_unset=True)
    assert said.keys() == result.keys() and said["outputs"][0].keys() == result["outputs"][0].keys()
    ListAnswer.model_validate(client.get("/v1/requests").json())


def test_the_file_is_what_the_command_writes(client: Any, tmp_path: Path) -> None:
    id = send(client, prompts=[SMALL | {"prompt": "a cat", "seed": 7}], dtype="fp32")
    out = tmp_path / "a.png"
    options = "--model sd15 --weights tiny --width 64 --height 64 --steps 1 --seed 7 --dtype fp32"
    assert main(["sample", *options.split(), "--prompt", "a cat", "--out", str(out)]) == 0
    assert files(client, wait(client, id)) == [out.read_bytes()]


def test_left_out_fields_are_the_trainers_defaults(client: Any) -> None:
    id = send(client, prompts=[SMALL], output_format="", loras=None)
    (output,) = wait(client, id)["outputs"]
    assert (output["format"], output["seed"]) == ("jpg", 42)
    assert output["info"]["guidance_scale"] == get_model("sd15").defaults.guidance_scale


def test_a_random_seed_is_told_and_draws_the_same_again(client: Any) -> None:
    id = send(client, prompts=[SMALL | {"seed": -1}] * 2)
    first = wait(client, id)
    seeds = [output["seed"] for output in first["outputs"]]
    assert min(seeds) >= 0 and seeds[0] != seeds[1]
    assert [prompt["seed"] for prompt in first["metadata"]["prompts"]] == seeds
    again = wait(client, send(client, prompts=[SMALL | {"seed": seed} for seed in seeds]))
    assert files(client, again) == files(client, first)
    assert again["metadata"] == first["metadata"]
    assert files(client, wait(client, send(client, **first["metadata"]))) == files(client, first)


def test_loras_act_and_leave_no_trace(client: Any, server: Any, lora: Callable[..., Path]) -> None:
    folder = server.service.settings.lora_folder
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "sub" / "a.safetensors").write_bytes(lora("sd15", 1).read_bytes())
    base, tiny, own, zero, last = (
        files(client, wait(client, send(client, loras=loras)))
        for loras in (
            [],
            [{"path": "tiny"}],
            [{"path": "sub/a.safetensors", "network_multiplier": 0.5}],
            [{"path": "tiny", "network_multiplier": 0}],
            [],
        )
    )
    assert base == zero == last
    assert base != tiny != own != base


def test_a_pair_for_two_experts(client: Any) -> None:
    prompts = [SMALL | {"num_frames": 1, "sample_steps": 4}]
    kinds = (("high",), ("low",), ("high", "low"), ("low", "high"))
    drawn = {}
    for sides in kinds:
        loras = [{"path": "tiny", "transformer": side} for side in sides]
        id = send(client, model="wan22_14b_t2v", prompts=prompts, loras=loras)
        drawn[sides] = files(client, wait(client, id))
    assert drawn["high", "low"] == drawn["low", "high"]
    assert len({str(file) for file in drawn.values()}) == 3
    for loras, message in (
        ([{"path": "tiny"}], "give each LoRA `transformer` high or low"),
        ([{"path": "tiny", "transformer": "low"}] * 2, "one each at most"),
        (
            [
                {"path": "tiny", "transformer": "low"},
                {"path": "tiny", "transformer": "high", "network_multiplier": 0.5},
            ],
            "one network_multiplier",
        ),
    ):
        answer = client.post("/v1/inference", json=body(model="wan22_14b_t2v", loras=loras))
        refused(answer, 400, "invalid_input", message)


def test_a_clip(client: Any) -> None:
    prompts = [SMALL | {"num_frames": 5, "fps": 8}]
    id = send(client, model="wan21_1b", prompts=prompts, output_format="")
    result = wait(client, id)
    (output,) = result["outputs"]
    assert (output["format"], output["num_frames"], output["fps"]) == ("mp4", 5, 8)
    file = client.get(output["url"], headers={"Range": "bytes=0-9"})
    assert (file.status_code, file.headers["content-type"]) == (206, "video/mp4")


def test_canceling_leaves_the_next_request_as_it_is(client: Any) -> None:
    expected = files(client, wait(client, send(client)))
    drawn, waits, next = send(client, prompts=[LONG]), send(client), send(client)
    wait(client, drawn, "in_progress")
    assert [status(client, id)["position"] for id in (drawn, waits, next)] == [None, 0, 1]
    assert client.post(f"/v1/requests/{waits}/cancel").json()["status"] == "canceled"
    assert status(client, next)["position"] == 0
    while not (status(client, drawn)["progress"] or {}).get("step"):
        time.sleep(0.01)
    progress = status(client, drawn)["progress"]
    assert (progress["index"], progress["samples"], progress["steps"]) == (0, 1, 900)
    client.post(f"/v1/requests/{drawn}/cancel")
    assert wait(client, drawn)["outputs"] is None
    result = wait(client, next)
    assert files(client, result) == expected
    assert client.post(f"/v1/requests/{next}/cancel").json()["status"] == "succeeded"
    assert wait(client, waits)["started_at"] is None


def test_what_was_drawn_before_a_cancel_is_kept(client: Any) -> None:
    id = send(client, prompts=[SMALL, LONG])
    while not client.get(f"/v1/requests/{id}/result").json()["outputs"]:
        time.sleep(0.01)
    client.post(f"/v1/requests/{id}/cancel")
    result = wait(client, id)
    assert (result["status"], len(result["outputs"])) == ("canceled", 1)
    assert client.get(result["outputs"][0]["url"]).status_code == 200


def test_the_list_has_pages(client: Any) -> None:
    ids = [send(client) for _ in range(3)]
    wait(client, ids[-1])
    first = client.get("/v1/requests", params={"limit": 2}).json()
    assert [row["request_id"] for row in first["requests"]] == ids[:0:-1]
    assert first["has_more"]
    rest = client.get("/v1/requests", params={"limit": 1, "after": ids[1]}).json()
    assert [row["request_id"] for row in rest["requests"]] == ids[:1]
    done = client.get("/v1/requests", params={"status": "succeeded", "limit": 100}).json()
    assert {row["status"] for row in done["requests"]} == {"succeeded"}
    assert not client.get("/v1/requests", params={"status": "in_queue"}).json()["requests"]
    refused(client.get("/v1/requests?limit=0"), 400, "invalid_input", "limit: ")
    refused(client.get("/v1/requests?status=x"), 400, "invalid_input", "status: ")
    refused(client.get("/v1/requests?after=x"), 404, "request_not_found", "no request 'x'")


def test_models_health_and_numbers(client: Any) -> None:
    wait(client, send(client))
    models = client.get("/v1/models").json()
    assert models["object"] == "list"
    assert [row["id"] for row in models["data"]] == [row["id"] for row in models["models"]]
    one = client.get("/v1/models/sd15").json()
    assert (one["object"], one["default_steps"], one["requires_control_image"]) == (
        "model",
        *(25, False),
    )
    refused(client.get("/v1/models/a%2Fb"), 404, "model_not_found", "a/b")
    health = client.get("/health").json()
    assert (health["status"], health["model"], health["weights"]) == ("healthy", "sd15", "tiny")
    numbers = client.get("/metrics").text
    assert 'aitk_requests_total{model="sd15",status="succeeded"}' in numbers
    assert "aitk_weight_bytes 0.0" not in numbers and "aitk_weight_bytes" in numbers


def test_every_route_is_described(client: Any) -> None:
    page = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
    description = client.get("/openapi.json").json()
    for path, methods in description["paths"].items():
        for method, route in methods.items():
            assert f"`{method.upper()} {path}`" in page
            assert set(route["responses"]) >= {"200", "4XX", "5XX"} and route["description"]
    assert "HTTPValidationError" not in description["components"]["schemas"]
    assert client.get("/docs").status_code == 200
