"""OpenAI's Images API: pictures of other pictures, as forms and as JSON."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import pytest
from asking import EDITS, PROMPT, content, data_address, finished, flat, newest, png, small
from PIL import Image

openai = pytest.importorskip("openai", reason="the OpenAI client is not installed")


@pytest.fixture(scope="module")
def native(client) -> Callable[..., bytes]:
    """The file that the native API draws of a prompt with these fields."""

    def native(model: str, **prompt: Any) -> bytes:
        sides = {"width": 64, "height": 64, "sample_steps": 2}
        fields = {"model": model, "dtype": "fp32", "output_format": "png"}
        body = fields | {"prompts": [{"prompt": PROMPT, **sides, **prompt}]}
        told = client.post("/v1/inference", json=body).raise_for_status().json()
        (output,) = finished(client, told["request_id"])["outputs"]
        return client.get(output["url"]).content

    return native


def edited(images: Any, model: str, *pictures: bytes, **arguments: Any) -> Any:
    """What becomes of pictures: one is sent alone, several as a list."""
    files = [(f"{index}.png", picture) for index, picture in enumerate(pictures)]
    image = files[0] if len(files) == 1 else files
    return images.edit(model=model, image=image, **(small() | arguments))


@pytest.mark.parametrize("model", ["flux_kontext", "qwen_image_edit_plus"])
def test_an_edit_is_what_the_native_api_draws(images, native, model):
    done = edited(images, model, png(1), n=2)
    assert [one.seed for one in done.data] == [42, 43]
    first, second = content(*done.data)
    assert first == native(model, ctrl_img_1=data_address(png(1)))
    assert second == native(model, ctrl_img_1=data_address(png(1)), seed=43)
    assert content(*edited(images, model, png(2)).data) != [first]


def test_pictures_are_kept_once_for_all_of_n(server, images, client):
    done = edited(images, "qwen_image_edit_plus", png(1), png(2), n=2)
    kept = server.service.settings.output_folder.glob(f"{done.request_id}_control_*")
    names = sorted(file.name for file in kept)
    prompts = finished(client, done.request_id)["metadata"]["prompts"]
    assert [[one["ctrl_img_1"], one["ctrl_img_2"]] for one in prompts] == [names, names]


def test_several_pictures_keep_their_order(images, native, client):
    model, addresses = "qwen_image_edit_plus", [data_address(png(seed)) for seed in (1, 2)]
    drawn = content(*edited(images, model, png(1), png(2)).data)[0]
    assert drawn == native(model, ctrl_img_1=addresses[0], ctrl_img_2=addresses[1])
    assert drawn != content(*edited(images, model, png(2), png(1)).data)[0]
    urls = [{"image_url": address} for address in addresses]
    as_json = client.post(EDITS, json=flat(model, images=urls)).raise_for_status().json()
    assert base64.b64decode(as_json["data"][0]["b64_json"]) == drawn
    form = {key: str(value) for key, value in flat(model).items()}
    files = [("images", ("a.png", png(1))), ("image[]", ("b.png", png(2)))]
    mixed = client.post(EDITS, data=form, files=files).raise_for_status().json()
    assert mixed["data"] == as_json["data"]
    files = [("image", ("b.png", png(2)))]  # which come behind the fields
    mixed = client.post(EDITS, data=form | {"url": addresses[0]}, files=files).raise_for_status()
    assert mixed.json()["data"] == as_json["data"]


def test_an_edit_can_be_streamed(images):
    arguments = {"stream": True, "partial_images": 1}
    partial, last = edited(images, "flux_kontext", png(1), **arguments)
    assert (partial.type, last.type) == ("image_edit.partial_image", "image_edit.completed")
    assert content(last) == content(*edited(images, "flux_kontext", png(1)).data)


def test_an_edit_takes_loras_in_every_form_that_clients_write(images, put):
    name = put("flux_kontext")
    forms = [
        {"lora": {"name": name, "scale": 0.5}},
        {"lora": [{"name": name, "scale": 0.5}]},
        {"loras": f'[{{"name": "{name}", "scale": 0.5}}]'},
        {"lora[0][name]": name, "lora[0][scale]": "0.5"},
    ]
    extra = small()["extra_body"]
    drawn = [edited(images, "flux_kontext", png(1), extra_body=extra | form) for form in forms]
    assert len({content(*done.data)[0] for done in drawn}) == 1
    assert [done.lora[0]["multiplier"] for done in drawn] == [0.5] * 4
    none = edited(images, "flux_kontext", png(1), extra_body=extra | {"lora": "[]"})
    assert content(*none.data) == content(*edited(images, "flux_kontext", png(1)).data)
    assert content(*none.data) != content(*drawn[0].data)


def masked(picture: bytes, mask: bytes) -> bytes:
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.putalpha(Image.open(io.BytesIO(mask)).getchannel("A"))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_a_mask_is_the_alpha_of_the_picture_that_is_painted_into(images, native):
    mask = png(2, "RGBA")
    drawn = content(*edited(images, "flex2", png(1), mask=("m.png", mask)).data)[0]
    assert drawn == native("flex2", ctrl_img=data_address(masked(png(1), mask)))
    assert drawn == content(*edited(images, "flex2", masked(png(1), mask)).data)[0]
    for bad in (png(2), png(2, "RGBA", (9, 9))):
        with pytest.raises(openai.BadRequestError, match="as large as the picture") as refused:
            edited(images, "flex2", png(1), mask=("m.png", bad))
        assert refused.value.param == "mask"
    followed = edited(images, "flex2", png(1, "RGBA"), **small(ctrl_idx=1))
    assert content(*followed.data)[0] == native(
        "flex2", ctrl_img=data_address(png(1, "RGBA")), ctrl_idx=1
    )


FILE = ("image", ("a.png", png(1)))
REFUSED_EDITS = [
    ("sd15", [FILE], {}, "model", "takes no pictures; models that do: flex2, "),
    ("wan21_i2v_14b", [FILE], {}, "model", "draws clips"),
    ("flux_kontext", [FILE, ("images", FILE[1])], {}, "images", "2 pictures; flux_kontext takes"),
    ("flux_kontext", [], {}, "image", "there is none"),
    ("flux_kontext", [("image", ("a.png", b"hello"))], {}, "image", "no picture that can be read"),
    ("flux_kontext", [FILE, ("mask", FILE[1])], {}, "mask", "use a model that does: flex2"),
    ("flux_kontext", [FILE, ("markup", FILE[1])], {}, "markup", "no such file"),
    ("flux_kontext", [FILE], {"n": "two"}, "n", "integer"),
    ("flux_kontext", [FILE], {"prompt": ""}, "prompt", "at least 1 character"),
    ("flux_kontext", [FILE], {"lora": "style"}, "lora", "no JSON"),
    ("flux_kontext", [FILE], {"size": "big"}, "size", "WIDTHxHEIGHT"),
    ("flux_kontext", [FILE], {"image": "nowhere.png"}, "image", "2 pictures"),
    ("flux_kontext", [], {"image": "nowhere.png"}, "image", "https:// address"),
    ("flux_kontext", [], {"url": "http://example.com/a.png"}, "url", "start with https://"),
    ("flux_kontext", [], {"url": "https://127.0.0.1/a.png"}, "url", "private or local"),
]


@pytest.mark.parametrize(("model", "files", "fields", "param", "words"), REFUSED_EDITS)
def test_an_edit_that_cannot_be_honoured_is_refused(client, model, files, fields, param, words):
    before, form = newest(client), {key: str(value) for key, value in flat(model).items()}
    sent = files or [("unused", (None, ""))]  # a form all the same
    answer = client.post(EDITS, data=form | fields, files=sent)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param) and words in error["message"]
    assert newest(client) == before


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"{", None, "no JSON"),
        (b'{"prompt": "a"}', "image", "there is none"),
        (b'{"images": [{"file_id": "a"}], "prompt": "a"}', "images.0.image_url", "required"),
        (b'{"images": [{"image_url": "data:,a"}], "prompt": "a"}', "images.0", "data:image"),
    ],
)  # fmt: skip
def test_an_edit_as_json_is_checked_as_well(client, body, param, words):
    content = body.replace(b'{"', b'{"model": "flux_kontext", "', 1)
    answer = client.post(EDITS, content=content, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param) and words in error["message"]


@pytest.mark.parametrize(
    ("pairs", "fields"),
    [
        ([("n", "2"), ("size", "auto")], {"n": "2", "size": "auto"}),
        ([("a[x]", "1"), ("a[y]", "2")], {"a": {"x": "1", "y": "2"}}),
        ([("a[1][x]", "2"), ("a[0][x]", "1")], {"a": [{"x": "1"}, {"x": "2"}]}),
        ([("a[][x]", "1"), ("a[][x]", "2"), ("a[][y]", "3"), ("a[][y]", "4")],
         {"a": [{"x": "1", "y": "3"}, {"x": "2", "y": "4"}]}),
        ([("switches", '{"kv_cache": true}')], {"switches": {"kv_cache": True}}),
        ([("a[][x]", "1"), ("a[][x]", "2"), ("a[][y]", "3")], "cannot be told"),
        ([("a[x]", "1"), ("a[][x]", "2")], "some of its parts have a number and some have none"),
        ([("a[x]", "1"), ("a[x]", "2")], "a[x]: it is given twice"),
        ([("lora", "[]"), ("lora[x]", "1")], "as one field and in parts"),
        ([("n", "2"), ("n", "3")], "n: it is given twice"),
    ],
)  # fmt: skip
def test_fields_of_a_form_are_read_as_json_would_have_them(pairs, fields):
    from ai_toolkit_inference.core.errors import InvalidInputError
    from ai_toolkit_inference.server.image_forms import nested

    if isinstance(fields, str):
        with pytest.raises(InvalidInputError) as refused:
            nested(pairs)
        assert fields in str(refused.value)
    else:
        assert nested(pairs) == fields
