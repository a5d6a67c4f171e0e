"""OpenAI's Images API: pictures of a text, asked by OpenAI's own client and by plain HTTP."""

from __future__ import annotations

import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asking import GENERATIONS, PROMPT, content, finished, flat, newest, small
from PIL import Image

openai = pytest.importorskip("openai", reason="the OpenAI client is not installed")

KEY = "a-key-of-sixteen-characters"


@pytest.fixture(scope="module")
def base(images) -> bytes:
    """The picture without any LoRA."""
    return content(*images.generate(model="sd15", **small()).data)[0]


@pytest.mark.parametrize(("kind", "ending"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")])
def test_a_picture_is_the_file_that_the_command_line_draws(images, tmp_path, kind, ending):
    from ai_toolkit_inference.cli.main import main

    done = images.generate(model="sd15", n=3, output_format=kind, **small(seed=7))
    assert [one.seed for one in done.data] == [7, 8, 9]
    assert (done.output_format, done.size, done.lora) == (kind, "64x64", [])
    file = tmp_path / f"a.{ending}"
    options = {"--model": "sd15", "--weights": "tiny", "--dtype": "fp32", "--device": "cpu"}
    options |= {"--prompt": PROMPT, "--width": "64", "--height": "64", "--steps": "2"}
    words = [word for pair in options.items() for word in pair]
    assert main(["sample", *words, "--seed", "8", "--out", str(file)]) == 0
    drawn = content(*done.data)
    assert drawn[1] == file.read_bytes()
    assert len(set(drawn)) == 3


def test_what_is_left_out_is_the_models_and_the_trainers(images, client):
    done = images.generate(model="sd15", prompt=PROMPT, extra_body={"steps": 1})
    info = finished(client, done.request_id)["outputs"][0]["info"]
    assert (done.size, done.data[0].seed, info["dtype"]) == ("512x512", 42, "bf16")


def test_a_seed_at_random_is_told_and_gives_the_same_again(images):
    first = images.generate(model="sd15", n=2, **small(seed=-1))
    one, two = (picture.seed for picture in first.data)
    assert two == one + 1
    again = images.generate(model="sd15", **small(seed=two))
    assert content(*again.data) == content(first.data[1])


def test_fields_of_ours_reach_the_picture(images, client):
    extra = {"num_inference_steps": 3, "guidance_scale": 2.5, "negative_prompt": "dog"}
    body = {"prompt": "a [trigger]", "size": "64x64", "model": "sd15"}
    more = {"trigger_word": "cat", "sampler": "ddim", "mode": "live", "trainer_version": "0.7.19"}
    done = images.generate(**body, extra_body=extra | more)
    info = finished(client, done.request_id)["outputs"][0]["info"]
    assert (info["steps"], info["guidance_scale"], info["negative_prompt"]) == (3, 2.5, "dog")
    assert (info["prompt"], info["sampler"], info["trainer_version"]) == ("a cat", "ddim", "0.7.19")


def test_a_lora_acts_as_strongly_as_asked_for(images, put, base):
    style = put()

    def drawn(lora: Any, name: str = "lora") -> tuple[bytes, list[dict[str, Any]]]:
        done = images.generate(model="sd15", **small(**{name: lora}))
        return content(*done.data)[0], done.lora

    full, (acted,) = drawn({"name": style})
    assert full != base
    assert (acted["file"], acted["multiplier"], acted["left_out"]) == (style, 1.0, 0)
    half, (acted,) = drawn({"name": "mine", "local_path": style, "strength": 0.5})
    assert half not in (base, full) and acted["multiplier"] == 0.5
    assert drawn([{"path": style, "network_multiplier": 0.5}], "loras")[0] == half
    assert drawn({"name": style, "scale": 0})[0] == base
    assert drawn([])[0] == base


def test_requests_at_the_same_time_do_not_mix_their_loras(images, put, base):
    style, scales = put(), [0, 0.5, 1, 0, 1]
    ask = lambda scale: images.generate(model="sd15", **small(lora={"name": style, "scale": scale}))  # noqa: E731
    with ThreadPoolExecutor(5) as pool:
        drawn = [content(*done.data)[0] for done in pool.map(ask, scales)]
    assert drawn[0] == drawn[3] == base
    assert drawn[2] == drawn[4]
    assert len(set(drawn)) == 3


def test_a_link_needs_no_key_and_cannot_be_made_up(serve, speak, client, tmp_path, monkeypatch):
    (tmp_path / "keys").write_text(KEY)
    with serve(tmp_path, api_key_file=str(tmp_path / "keys")) as server:
        images = speak(server.url, KEY)
        done = images.generate(model="sd15", n=2, response_format="url", **small())
        assert [one.b64_json for one in done.data] == [None, None]
        files = [client.get(one.url) for one in done.data]
        assert [file.headers["content-type"] for file in files] == ["image/png"] * 2
        drawn = images.generate(model="sd15", n=2, **small())
        assert [file.content for file in files] == content(*drawn.data)
        link = done.data[0].url
        signature = link.rpartition("=")[2]
        forged = link.replace(signature, signature[::-1])
        other = link.replace("_output_0", "_output_1")
        for bad in (forged, other, link.partition("?")[0]):
            assert client.get(bad).status_code == 401
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 3_700)
        assert client.get(link).status_code == 401
        with pytest.raises(openai.AuthenticationError):
            speak(server.url).generate(model="sd15", **small())


@pytest.mark.parametrize(("total", "pictures", "after"), [
    (20, 3, {5, 10, 15}), (4, 1, {2}), (3, 3, {1, 2, 3}), (2, 3, {1, 2}), (9, 0, set()),
])  # fmt: skip
def test_partial_pictures_are_spread_over_the_steps(total, pictures, after):
    from ai_toolkit_inference.server.image_stream import shown_steps

    assert shown_steps(total, pictures) == after


@pytest.mark.parametrize(("shown", "kind"), [(3, "png"), (1, "webp"), (0, "jpeg")])
def test_a_stream_shows_the_picture_as_it_becomes(images, shown, kind):
    arguments = {"model": "sd15", "output_format": kind} | small(steps=8, seed=5)
    *partial, last = images.generate(stream=True, partial_images=shown, **arguments)
    assert [one.type for one in partial] == ["image_generation.partial_image"] * shown
    assert [one.partial_image_index for one in partial] == list(range(shown))
    previews = content(*partial)
    assert len(set(previews)) == shown
    for one, preview in zip(partial, previews, strict=True):
        picture = Image.open(io.BytesIO(preview))
        assert (picture.format, "{}x{}".format(*picture.size)) == (kind.upper(), one.size)
    assert last.type == "image_generation.completed"
    assert (last.size, last.seed, last.usage.total_tokens) == ("64x64", 5, 0)
    assert content(last) == content(*images.generate(**arguments).data)


def test_an_error_comes_in_the_stream_as_well(images):
    away = {"path": "https://127.0.0.1/style.safetensors"}  # judged when it is fetched
    with pytest.raises(openai.APIError) as stopped:
        list(images.generate(model="sd15", stream=True, **small(lora=away)))
    with pytest.raises(openai.BadRequestError) as refused:
        images.generate(model="sd15", **small(lora=away))
    assert stopped.value.body == refused.value.body
    assert stopped.value.body["code"] == "download_failed"


REFUSED = [
    ({"size": "64 x 64"}, "size", "WIDTHxHEIGHT"),
    ({"size": "64x20000"}, "size", "16384"),
    ({"n": 0}, "n", "greater than"),
    ({"n": 11}, "n", "less than"),
    ({"quality": "hd"}, "quality", "'auto'"),
    ({"style": "natural"}, "style", "'vivid'"),
    ({"background": "transparent"}, "background", "'opaque'"),
    ({"output_compression": 50}, "output_compression", "100"),
    ({"output_format": "gif"}, "output_format", "'webp'"),
    ({"response_format": "file"}, "response_format", "'url'"),
    ({"seed": 2**64 - 1, "n": 2}, "seed", "smaller seed"),
    ({"stream": True, "n": 2}, None, "a stream has one picture"),
    ({"stream": True, "response_format": "url"}, None, "leave response_format out"),
    ({"partial_images": 1}, None, "set stream to true"),
    ({"steps": 2, "num_inference_steps": 2}, None, "are one field"),
    ({"lora": {"name": "a", "sclae": 1}}, "lora.0.sclae", "no such field"),
    ({"lora": {"name": "a", "scale": 1, "strength": 1}}, "lora.0", "are one field"),
    ({"lora": {"scale": 1}}, "lora.0", "name or a path"),
    ({"lora": [], "loras": []}, None, "lora and loras are one field"),
    ({"lora": {"name": "nowhere.safetensors"}}, None, "no LoRA 'nowhere.safetensors'"),
    ({"model": "wan21_1b"}, "model", "draws clips"),
    ({"model": "flux_kontext"}, "model", "/v1/images/edits"),
    ({"model": ""}, "model", "missing"),
    ({"weigths": "tiny"}, "weigths", "no such field"),
]


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED, ids=lambda x: str(x)[:30])
def test_what_cannot_be_honoured_is_refused(client, fields, param, words):
    before = newest(client)
    answer = client.post(GENERATIONS, json=flat() | fields)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param and words in error["message"]
    assert newest(client) == before


def test_what_clients_send_without_meaning_it_is_taken(client, base):
    usual = {"quality": "auto", "style": "vivid", "background": "auto", "moderation": "low"}
    usual |= {"user": "me", "output_compression": 100, "n": None, "lora": None, "stream": False}
    answer = client.post(GENERATIONS, json=flat() | usual).raise_for_status()
    assert base64.b64decode(answer.json()["data"][0]["b64_json"]) == base
    assert answer.headers["x-request-id"] == answer.json()["request_id"]


def test_the_client_tells_its_errors_by_their_kind(images):
    with pytest.raises(openai.NotFoundError) as missing:
        images.generate(model="gpt-image-1", prompt=PROMPT)
    assert (missing.value.body["code"], missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as refused:
        images.generate(model="sd15", **small("large"))
    assert (refused.value.code, refused.value.param) == ("invalid_input", "size")
    assert "large" in refused.value.body["message"]
