"""The server's own LoRAs act as a request's do, on every request that names none, and come off."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from lora_calls import SMALL, active, ask, draw, message, picture, set_lora

httpx = pytest.importorskip("httpx")


@pytest.fixture(scope="module")
def base(client: Any) -> bytes:
    """What the model draws with no LoRA at all."""
    return draw(client, loras=[])


@pytest.fixture(autouse=True)
def cleared(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing acts after a test."""
    yield
    if "client" in request.fixturenames:
        client = request.getfixturevalue("client")
        for model in ("sd15", "wan22_14b_t2v"):
            assert set_lora(client, [], model=model).status_code == 200


@pytest.mark.parametrize(
    ("merge_mode", "mode"), [("auto", "as_trainer"), ("merge", "merged"), ("dynamic", "live")]
)
def test_what_is_set_acts_as_a_requests_own(client, put, base, merge_mode, mode):
    file = put()
    own = draw(client, loras=[{"path": file, "network_multiplier": 0.5}], mode=mode)
    answer = set_lora(client, "style", file, strength=0.5, merge_mode=merge_mode)
    said = {"status": "ok", "message": "Loaded LoRA adapter(s): style", "model": "sd15"}
    assert answer.json() == said
    assert draw(client) == own != base
    assert draw(client, loras=[]) == base


def test_the_mode_of_the_set_yields_to_a_requests(client, put):
    file = put()
    live = draw(client, loras=[{"path": file}], mode="live")
    merged = draw(client, loras=[{"path": file}], mode="merged")
    assert live != merged
    set_lora(client, "style", file, merge_mode="dynamic")
    assert draw(client) == live
    assert draw(client, mode="merged") == merged
    assert draw(client, loras=[{"path": "style"}]) == merged  # its own list: nothing is the set's


def test_it_acts_over_the_images_api_as_well(client, put):
    file = put()
    live = draw(client, loras=[{"path": file}], mode="live")
    merged = draw(client, loras=[{"path": file}], mode="merged")
    set_lora(client, "style", file, merge_mode="dynamic")
    body = {"model": "sd15", "prompt": SMALL["prompt"], "size": "64x64", "steps": 2, "seed": 42}
    for more, drawn in (
        ({}, live),
        ({"mode": "merged"}, merged),
        ({"lora": {"name": "style"}}, merged),
    ):
        answer = client.post("/v1/images/generations", json=body | more).json()
        assert base64.b64decode(answer["data"][0]["b64_json"]) == drawn


def test_several_act_in_their_order_with_their_strengths(client, put):
    files = [put(seed=1), put(seed=2)]
    pairs = zip(files, (0.5, 0.8), strict=True)
    own = draw(client, loras=[{"path": f, "network_multiplier": m} for f, m in pairs])
    set_lora(client, ["one", "two"], files, strength=[0.5, 0.8])
    assert draw(client) == own
    set_lora(client, "two", strength=0.8)  # the whole set is given each time
    assert draw(client) == draw(client, loras=[{"path": files[1], "network_multiplier": 0.8}])


def test_an_empty_list_and_unmerging_give_the_base_back(client, put, base):
    set_lora(client, "style", put(), merge_mode="merge")
    drawn = draw(client)
    assert drawn != base
    for body in ({"model": "sd15", "target": "all"}, {}):  # nothing to unmerge is no error
        answer = client.post("/v1/unmerge_lora_weights", json=body)
        assert answer.json()["model"] == "sd15"
        assert draw(client) == base and active(client) == {}
    assert set_lora(client, "style", merge_mode="merge").status_code == 200
    assert draw(client) == drawn
    assert set_lora(client, []).json()["message"] == "No LoRA acts"
    assert draw(client) == base


def test_merging_replaces_the_strength_each_time(client, put, base):
    file, merge = put(), {"model": "sd15"}
    set_lora(client, "style", file, strength=0.8)
    for strength in (0.5, 1.0, 0.5):
        body = merge | {"strength": strength}
        assert client.post("/v1/merge_lora_weights", json=body).status_code == 200
        own = draw(client, loras=[{"path": file, "network_multiplier": strength}], mode="merged")
        assert draw(client) == own
        row = active(client)["all"][0]
        assert (row["strength"], row["merged"], row["mode"]) == (strength, True, "merged")
    set_lora(client, [])
    assert "nothing acts" in message(client.post("/v1/merge_lora_weights", json=merge))
    assert draw(client) == base


def test_requests_at_the_same_time_do_not_touch_each_other(client, put, base):
    set_lora(client, "of-all", put(seed=3))
    bodies: list[dict[str, Any]] = [
        {},
        {"loras": []},
        {"loras": [{"path": put(seed=1)}]},
        {"loras": [{"path": put(seed=2), "network_multiplier": 0.3}], "mode": "live"},
        {"loras": [{"path": put(seed=1)}, {"path": put(seed=2)}]},
    ]
    alone = [draw(client, **body) for body in bodies]
    assert len(set(alone)) == len(bodies) and alone[1] == base
    with ThreadPoolExecutor(10) as pool:
        together = list(pool.map(lambda body: draw(client, **body), bodies * 2))
    assert together == alone * 2


def test_a_request_is_decided_when_it_comes(client, put, base):
    file = put()
    own = draw(client, loras=[{"path": file}])
    set_lora(client, "style", file)
    urls = [ask(client) for _ in range(3)]
    assert set_lora(client, []).is_success
    urls.append(ask(client))
    assert [picture(client, url) for url in urls] == [own] * 3 + [base]


def test_a_nickname_is_a_name_in_requests_and_comes_before_a_file(client, put):
    one, two = put(seed=1), put(seed=2)
    by_file = {name: draw(client, loras=[{"path": name}]) for name in (one, two)}
    assert by_file[one] != by_file[two]
    set_lora(client, "style", one)
    assert draw(client, loras=[{"path": "style"}]) == by_file[one]
    set_lora(client, "style", two)  # the same nickname, another file
    assert draw(client, loras=[{"path": "style"}]) == by_file[two]
    set_lora(client, two, one)
    assert draw(client, loras=[{"path": two}]) == by_file[one]
    set_lora(client, two, two)
    assert draw(client, loras=[{"path": two}]) == by_file[two]
    other = {"model": "sdxl", "loras": [{"path": "style"}], "prompts": [SMALL]}
    assert "no LoRA 'style'" in message(client.post("/v1/inference", json=other))


def test_what_is_listed(client, put):
    file = put(seed=5)
    set_lora(client, ["five", file], [file, None], strength=[0.5, 1])
    listed = client.get("/v1/list_loras", params={"model": "sd15"}).json()
    rows = {row["nickname"]: row for row in listed["loaded_adapters"]}
    assert rows["five"]["path"] == rows[file]["path"] == rows["five"]["report"]["file"] == file
    report = rows["five"]["report"]
    assert (
        report["fits"] and report["effective"] and report["unbound"] == report["mismatched"] == []
    )
    assert report["bound"] == report["layers"] > 0 and report["rank"] == [4]
    assert set(report["modules"]) == {"unet", "text_encoder"} and report["norms"]
    expected = {"path": file, "model": "sd15", "merged": False, "mode": "as_trainer"}
    assert listed["active"] == {
        "all": [
            {"nickname": "five", "strength": 0.5} | expected,
            {"nickname": file, "strength": 1.0} | expected,
        ]
    }
    other = client.get("/v1/list_loras", params={"model": "sdxl"}).json()
    assert other == {"loaded_adapters": [], "active": {}}
    assert client.get("/v1/list_loras", params={"model": "none"}).status_code == 404


def test_a_file_that_is_gone_is_told_and_never_left_out(server, client, put):
    file = put(seed=6)
    set_lora(client, "gone", file)
    (server.service.settings.lora_folder / file).unlink()
    rows = client.get("/v1/list_loras").json()["loaded_adapters"]
    row = next(row for row in rows if row["nickname"] == "gone")
    assert row["report"] is None and f"there is no LoRA {file!r}" in row["error"]
    refused = client.post("/v1/inference", json={"model": "sd15", "prompts": [SMALL]})
    assert file in message(refused)
    assert set_lora(client, "gone", put()).status_code == 200


def test_a_link_is_listed_without_what_opens_it(server, client):
    from ai_toolkit_inference.server.lora_report import shown_name

    assert (
        shown_name("https://example.com/a.safetensors?sig=1") == "https://example.com/a.safetensors"
    )
    assert shown_name("what?.safetensors") == "what?.safetensors"


def test_targets_of_two_experts(client, put):
    model, file = "wan22_14b_t2v", put("wan22_14b_t2v")
    pair = {name: {"path": file, "transformer": name} for name in ("high", "low")}
    own = {name: draw(client, model, loras=[lora]) for name, lora in pair.items()}
    both = draw(client, model, loras=list(pair.values()))
    base = draw(client, model, loras=[])
    assert len({base, both, *own.values()}) == 4
    assert "two experts" in message(set_lora(client, "x", file, model=model))
    assert "critic" in message(set_lora(client, "x", file, model=model, target="critic"))
    twice = set_lora(client, ["x", "y"], file, model=model, target="high")
    assert "one each at most" in message(twice)
    for target, side in (("transformer", "high"), ("transformer_2", "low"), ("low", "low")):
        set_lora(client, "one", file, model=model, target=target)
        assert draw(client, model) == own[side]
        assert list(active(client, model)) == ["transformer" if side == "high" else "transformer_2"]
    assert draw(client, model, loras=[{"path": "one"}]) == own["low"]  # the side goes with the name
    set_lora(client, "one", model=model)
    assert draw(client, model) == own["low"]


def test_one_expert_of_a_pair_is_unmerged_or_both(client, put):
    model, file = "wan22_14b_t2v", put("wan22_14b_t2v")
    high, low = ({"path": file, "transformer": side} for side in ("high", "low"))
    names, targets = ["h", "l"], ["transformer", "transformer_2"]
    set_lora(client, names, file, model=model, target=targets)
    assert draw(client, model) == draw(client, model, loras=[high, low])
    assert set(active(client, model)) == set(targets)
    uneven = set_lora(client, names, model=model, target=targets, strength=[1, 0.5])
    assert "one network_multiplier" in message(uneven)
    body = {"model": model, "target": "transformer"}
    assert "leave `target` out" in message(client.post("/v1/merge_lora_weights", json=body))
    client.post("/v1/unmerge_lora_weights", json=body)
    assert draw(client, model) == draw(client, model, loras=[low])
    assert "nothing acts on transformer" in message(
        client.post("/v1/merge_lora_weights", json=body)
    )
    body = {"model": model, "target": "transformer_2", "strength": 0.5}
    assert client.post("/v1/merge_lora_weights", json=body).status_code == 200
    half = [low | {"network_multiplier": 0.5}]
    assert draw(client, model) == draw(client, model, loras=half, mode="merged")
    set_lora(client, names, model=model)  # the sides go with the names
    assert set(active(client, model)) == set(targets)
    assert client.post("/v1/unmerge_lora_weights", json={"model": model}).is_success
    assert draw(client, model) == draw(client, model, loras=[]) and not active(client, model)


def test_the_set_outlives_the_server(serve, lora, tmp_path):
    with serve(tmp_path) as server, httpx.Client(base_url=server.url, timeout=120) as client:
        file = Path(shutil.copy(lora("sd15", 1), tmp_path / "loras")).name
        set_lora(client, ["style", "off"], file, strength=0.5, merge_mode="dynamic")
        drawn, base = draw(client), draw(client, loras=[])
        before = client.get("/v1/list_loras").json()
    assert drawn != base
    with serve(tmp_path) as server, httpx.Client(base_url=server.url, timeout=120) as client:
        assert client.get("/v1/list_loras").json() == before
        assert draw(client) == drawn
        assert client.post("/v1/unmerge_lora_weights").status_code == 200  # of the loaded model
        assert draw(client) == base
    with serve(tmp_path) as server, httpx.Client(base_url=server.url, timeout=120) as client:
        assert draw(client) == base
        assert draw(
            client, loras=[{"path": "style", "network_multiplier": 0.5}] * 2, mode="live"
        ) == (drawn)


def test_the_model_is_the_servers_own_or_the_loaded_one(serve, lora, tmp_path):
    with serve(tmp_path) as server, httpx.Client(base_url=server.url, timeout=120) as client:
        body = {"lora_nickname": "tiny"}
        assert "names one" not in message(client.post("/v1/set_lora", json=body))
        draw(client, loras=[])
        assert client.post("/v1/set_lora", json=body).json()["model"] == "sd15"
        assert client.post("/v1/set_lora", json=body | {"model": "none"}).status_code == 404
    with serve(tmp_path, model="flux") as server, httpx.Client(base_url=server.url) as client:
        assert client.post("/v1/set_lora", json=body).json()["model"] == "flux"
        assert client.post("/v1/set_lora", json=body | {"target": "transformer"}).is_success
        assert list(client.get("/v1/list_loras").json()["active"]) == ["all"]


def test_changes_at_the_same_time_all_count(client, put):
    put()  # the file
    names = [f"name-{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda name: set_lora(client, name, put()), names))
    assert {answer.status_code for answer in answers} == {200}
    listed = client.get("/v1/list_loras", params={"model": "sd15"}).json()
    assert {row["nickname"] for row in listed["loaded_adapters"]} >= set(names)
    assert len(listed["active"]["all"]) == 1
