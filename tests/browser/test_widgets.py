"""The pack's nodes on ComfyUI's page: they follow the model, and lose nothing by it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
TESTS = HERE.parent
EXAMPLE = TESTS.parent / "example_workflows" / "flux_lora.json"
LORAS = {"flux": "flux", "other_flux": "flux-lokr", "sd15": "sd15"}
LOADER, LORA, SAMPLE = "LoadAIToolkitModel", "ApplyAIToolkitLoRA", "AIToolkitSample"
COMPARE = "AIToolkitCompareSamples"
LEAST = {"prompt", "width", "height", "steps", "guidance_scale", "seed", "trigger_word", "sampler"}
VIDEO = {"negative_prompt", "num_frames", "fps"}
FOLDED = {"doubled_control", "switches"}  # away, in newer pages
SOCKETS = ["control_image_1", "control_image_2", "control_image_3"]
JOB = {
    "1": {
        "class_type": "LoadAIToolkitJob",
        "inputs": {"job": "tiny", "step": "2", "weights": "as trained"},
    },
    "2": {
        "class_type": "AIToolkitRenderSamples",
        "inputs": {"model": ["1", 0], "samples": ["1", 1], "only": ""},
    },
    "3": {"class_type": COMPARE, "inputs": {"job": ["1", 2], "images": ["2", 0], "only": ""}},
}

pytestmark = pytest.mark.browser


def small_graph() -> dict[str, Any]:
    """The FLUX template with small pictures, a fixed seed and a file of the loras folder."""
    graph = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    for node in graph["nodes"]:
        values = node["widgets_values"]
        if node["type"] == LOADER:
            values[2] = "fp32"
        if node["type"] == LORA:
            values[0] = "flux.safetensors"
        if node["type"] == SAMPLE:
            values[2] = values[3] = 128
    return graph


def renderers() -> list[str]:
    """Nodes that are drawn, and those made of HTML, which older pages do not have."""
    old = os.environ.get("COMFYUI_FRONTEND", "").startswith("1.27.")
    return ["canvas"] if old else ["canvas", "nodes2"]


@pytest.fixture(scope="module", params=renderers())
def seen(
    request: pytest.FixtureRequest,
    node: str,
    chromium: str,
    server: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """The report of widgets_check.mjs, for each way in which the page shows nodes."""
    folder = tmp_path_factory.mktemp(request.param)
    shots = Path(os.environ.get("AITK_SCREENSHOTS") or folder)
    shots.mkdir(parents=True, exist_ok=True)
    put_files(Path(server["base"]))
    for name, graph in (("graph", small_graph()), ("job", JOB)):
        (folder / f"{name}.json").write_text(json.dumps(graph), encoding="utf-8")
    arguments = ["--shots", shots / f"widgets-{request.param}"]
    arguments += ["--graph", folder / "graph.json", "--job", folder / "job.json"]
    arguments += ["--nodes2"] if request.param == "nodes2" else []
    done = subprocess.run(
        [node, "widgets_check.mjs", server["url"], *arguments],
        cwd=HERE,
        env={**os.environ, "CHROMIUM": chromium},
        stdout=subprocess.PIPE,
        timeout=500,
        check=False,
    )
    assert done.stdout, "the browser did not start; its reason is above"
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["failure"] is None, report["failure"]
    return report


def put_files(base: Path) -> None:
    """LoRA files of two models, in the server's folder."""
    loras = base / "models" / "loras"
    loras.mkdir(parents=True, exist_ok=True)
    for name, golden in LORAS.items():
        source = TESTS / "goldens" / "loras" / f"{golden}-0.12.26.safetensors"
        (loras / f"{name}.safetensors").write_bytes(source.read_bytes())


def widgets(seen: dict[str, Any], step: str, node: str = SAMPLE) -> set[str]:
    """A node's inputs that are shown as widgets at a step."""
    own = ("$$", "ai_toolkit", "control_after", "cached_text")
    return {name for name in seen[step][node]["widgets"] if not name.startswith(own)}


def sockets(seen: dict[str, Any], step: str, node: str = SAMPLE) -> list[str]:
    return seen[step][node]["sockets"]


def test_inputs_follow_the_model(seen: dict[str, Any]) -> None:
    assert widgets(seen, "opened") == widgets(seen, "back") == {*LEAST, "denoise"}
    assert sockets(seen, "opened") == sockets(seen, "back") == ["model", "latent"]
    assert widgets(seen, "video") - FOLDED == LEAST | VIDEO
    assert sockets(seen, "video") == ["model"]
    assert widgets(seen, "edit") - FOLDED == {*LEAST, "negative_prompt", "denoise"}
    assert sockets(seen, "edit") == ["model", *SOCKETS, "latent"]


def test_the_low_noise_file_is_for_two_experts(seen: dict[str, Any]) -> None:
    asked = [
        step for step in ("opened", "video", "edit") if "lora_name_low" in widgets(seen, step, LORA)
    ]
    assert asked == ["video"]


def test_what_is_left_open_shows_what_it_will_be(seen: dict[str, Any]) -> None:
    drawn = seen["video"][SAMPLE]["shown"]
    assert drawn["guidance_scale"][0] == "4 (default)"
    assert drawn["num_frames"][0] == "41 (default)"
    assert drawn["sampler"][0] == "flowmatch (default)"
    assert drawn["width"][0] == "128"
    if text := seen["video"][SAMPLE]["text"]:  # made of HTML
        assert "num_frames (41)" in text and "sampler (flowmatch)" in text
        assert "control_image_1" not in text
        assert "num_frames" not in seen["back"][SAMPLE]["text"]
        assert "control_image_1" in seen["edit"][SAMPLE]["text"]


def test_stored_values_and_links_stay(seen: dict[str, Any]) -> None:
    """Also those of inputs that are hidden, in the order that is saved without the script."""
    for node in (LOADER, LORA, SAMPLE):
        steps = ["back", "reopened"]
        one, other = (seen[step][node] for step in steps)
        assert one["values"] == other["values"]
        assert one["asked"] == other["asked"]
        assert [link[:2] for link in one["links"]] == [link[:2] for link in other["links"]]
    values = seen["back"][SAMPLE]["values"]
    assert values[:4] == [seen["opened"][SAMPLE]["values"][0], "blurred", 128, 128]
    assert (values[4], values[8]) == (2, 41)
    asked = seen["back"][SAMPLE]["asked"]
    assert (asked["num_frames"], asked["negative_prompt"], asked["steps"]) == (41, "blurred", 2)
    names = [name for name, _, _ in seen["opened"][SAMPLE]["links"]]
    for step in ("video", "edit", "reopened"):
        assert [name for name, _, _ in seen[step][SAMPLE]["links"]] == names


def test_hidden_sockets_are_saved_as_sockets(seen: dict[str, Any]) -> None:
    for step in ("opened", "video", "edit"):
        hidden = {name: marked for name, _, marked in seen[step][SAMPLE]["links"]}
        assert not any(hidden[name] for name in (*SOCKETS, "latent", "model"))


def test_without_the_script_everything_is_there(seen: dict[str, Any]) -> None:
    """A graph that was saved with it, on a page that could not load it."""
    plain = seen["without_script"]
    for node in (LOADER, LORA, SAMPLE):
        assert plain[node]["values"] == seen["back"][node]["values"]
        assert plain[node]["asked"] == seen["back"][node]["asked"]
        assert plain[node]["note"] is None
    assert sockets(seen, "without_script") == ["model", *SOCKETS, "latent"]
    assert widgets(seen, "without_script") >= LEAST | VIDEO | {"control_index", "denoise"}
    assert seen["without_script_run"]["end"] == "execution_success"


def test_nodes_keep_their_size_when_opened_again(seen: dict[str, Any]) -> None:
    for node in (LOADER, LORA, SAMPLE):
        assert seen["reopened"][node]["size"][1] <= seen["back"][node]["size"][1] + 1


def test_only_files_that_fit_are_listed(seen: dict[str, Any]) -> None:
    fitting = ["flux.safetensors", "other_flux.safetensors", "tiny"]
    assert seen["opened"][LORA]["lists"]["lora_name"] == fitting
    # what is chosen stays, with a word about it
    assert seen["video"][LORA]["lists"]["lora_name"] == ["flux.safetensors", "tiny"]
    kind, text = seen["video"][LORA]["note"]
    assert kind == "warning" and "was made for FLUX.1, not for Wan 2.2 14B" in text
    assert seen["back"][LORA]["lists"]["lora_name"] == fitting
    assert "sd15.safetensors" in seen["all_files"][LORA]["lists"]["lora_name"]
    assert "show_all_files" not in seen["all_files"][LORA]["asked"]


def test_the_choice_to_show_all_is_saved_but_no_value(seen: dict[str, Any]) -> None:
    again = seen["reopened_all_files"][LORA]
    assert "sd15.safetensors" in again["lists"]["lora_name"]
    count = len(again["asked"]) - 1  # all but the socket
    assert again["values"][:count] == seen["failed"][LORA]["values"][:count]
    assert not [value for value in again["values"][count:] if isinstance(value, bool)]


def test_the_model_says_how_exact_it_is(seen: dict[str, Any]) -> None:
    kind, text = seen["opened"][LOADER]["note"]
    assert kind in ("exact", "measured") and "pictures" in text
    assert seen["opened"][LOADER]["note_on_page"]


def test_the_report_is_shown_after_a_run(seen: dict[str, Any]) -> None:
    assert seen["finished"]["end"] == "execution_success"
    assert seen["finished"]["counts"]["b_preview"] >= 2
    assert seen["opened"][LORA]["note"] is None
    kind, text = seen["ran"][LORA]["note"]
    assert kind == "report" and "layers bound" in text and "trigger word sks" in text
    assert seen["ran"][LORA]["note_on_page"]


def test_an_error_is_shown_on_its_node(seen: dict[str, Any]) -> None:
    assert seen["failed_run"]["end"] == "execution_error"
    kind, text = seen["failed"][LORA]["note"]
    assert kind == "error" and "does not fit flux" in text
    assert "choose the model it was trained on" in text
    assert seen["failed"][LORA]["note_on_page"]


def test_the_line_between_two_samples_follows_the_pointer(seen: dict[str, Any]) -> None:
    assert seen["compared_run"]["end"] == "execution_success"
    before, after, following = (seen["slide"][key] for key in ("before", "after", "next"))
    assert before["clip"] == "inset(0px 0px 0px 50%)"
    assert float(after["slider"]) == pytest.approx(25, abs=1)
    assert after["clip"] == f"inset(0px 0px 0px {after['slider']}%)"
    assert before["loaded"] == [128, 128] and following["loaded"] == [104, 104]
    assert "rendered" in before["text"] and "1 of 2 (sample 0): identical" in before["text"]
    assert "differences" in following["text"] and "2 of 2 (sample 1)" in following["text"]
    assert seen["compare_saved"]["values"] == [""]
    assert set(seen["compare_saved"]["asked"]) == {"job", "images", "only"}
