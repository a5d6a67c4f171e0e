"""The client of `aitk run` against a real server, with nodes of ComfyUI's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ai_toolkit_inference.cli.comfy_client import Event, run_workflow, target_path
from ai_toolkit_inference.core.errors import (
    CancelledError,
    InvalidInputError,
    OutputError,
    RemoteError,
    ServerUnavailableError,
)


def workflow(color: int, **changes: Any) -> dict[str, Any]:
    empty = {"width": 64, "height": 48, "batch_size": 2, "color": color, **changes}
    return {
        "1": {"class_type": "EmptyImage", "inputs": empty},
        "2": {
            "class_type": "SaveImage",
            "inputs": {"images": ["1", 0], "filename_prefix": f"client/{color:06x}"},
        },
    }


def slow_workflow(color: int) -> dict[str, Any]:
    """Blurs for some seconds a node on two cores."""
    graph = workflow(color, width=1024, height=1024, batch_size=4)
    for index in range(10, 30):
        image = [str(index - 1) if index > 10 else "1", 0]
        inputs = {"image": image, "blur_radius": 15, "sigma": 3.0}
        graph[str(index)] = {"class_type": "ImageBlur", "inputs": inputs}
    graph["2"]["inputs"]["images"] = ["29", 0]
    return graph


def test_files_and_events(comfy: Any, tmp_path: Path) -> None:
    events: list[Event] = []
    result = run_workflow(comfy.url, workflow(0x336699), tmp_path, events.append, 120)

    assert [event.kind for event in events] == ["queued", "node", "node", "finished"]
    assert [str(event) for event in events[1:3]] == [
        "node: EmptyImage (node 1)",
        "node: SaveImage (node 2)",
    ]
    assert result.executed_nodes == ["1", "2"] and result.cached_nodes == []
    assert result.files == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert [Image.open(file).getpixel((0, 0)) for file in result.files] == [(0x33, 0x66, 0x99)] * 2


def test_second_run_is_cached(comfy: Any, tmp_path: Path) -> None:
    first = run_workflow(comfy.url, workflow(0x224466), tmp_path / "a", timeout=120)
    second = run_workflow(comfy.url, workflow(0x224466), tmp_path / "b", timeout=120)

    assert second.cached_nodes == ["1", "2"] and second.executed_nodes == []
    assert second.outputs == first.outputs
    assert [file.name for file in second.files] == [file.name for file in first.files]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"width": -5}, "node 1 (EmptyImage): Value -5 smaller than min of 1: width"),
        ({"width": "wide"}, "node 1 (EmptyImage): Failed to convert an input value to a INT"),
    ],
)
def test_refused_input(comfy: Any, change: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        run_workflow(comfy.url, workflow(1, **change))
    assert expected in str(caught.value)


def test_every_wrong_input_has_a_line(comfy: Any) -> None:
    graph = workflow(1, width=-5)
    del graph["2"]["inputs"]["filename_prefix"]
    with pytest.raises(InvalidInputError) as caught:
        run_workflow(comfy.url, graph)
    assert len(str(caught.value).splitlines()) == 3


def test_unknown_node(comfy: Any) -> None:
    graph = workflow(1)
    graph["1"]["class_type"] = "NoSuchNode"
    with pytest.raises(InvalidInputError, match=r"NoSuchNode.*'#1'"):
        run_workflow(comfy.url, graph)


def test_failing_node(comfy: Any) -> None:
    graph = copy.deepcopy(workflow(2))
    graph["2"]["inputs"]["filename_prefix"] = "../../outside"
    with pytest.raises(RemoteError, match=r"node 2 \(SaveImage\) failed: Exception: .*outside"):
        run_workflow(comfy.url, graph, timeout=120)


def test_interrupt(comfy: Any, ask: Callable[..., Any]) -> None:
    def interrupt(event: Event) -> None:
        if event.kind == "node" and event.class_type == "ImageBlur":
            ask("interrupt", {"prompt_id": event.prompt_id})

    with pytest.raises(CancelledError, match=r"ImageBlur"):
        run_workflow(comfy.url, slow_workflow(3), on_event=interrupt, timeout=120)


def test_timeout_takes_the_job_off_the_server(comfy: Any, ask: Callable[..., Any]) -> None:
    with pytest.raises(RemoteError, match=r"took over 0\.5 s: cancelled"):
        run_workflow(comfy.url, slow_workflow(4), timeout=0.5)
    run_workflow(comfy.url, workflow(5), timeout=120)
    assert ask("queue") == {"queue_running": [], "queue_pending": []}


def test_error_in_a_callback_takes_the_job_off_the_server(comfy: Any) -> None:
    def fail(event: Event) -> None:
        if event.kind == "node":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_workflow(comfy.url, slow_workflow(6), on_event=fail, timeout=120)
    assert run_workflow(comfy.url, workflow(7), timeout=120).files == []


def test_output_folder_is_checked_first(comfy: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    events: list[Event] = []
    with pytest.raises(OutputError, match="cannot make the folder"):
        run_workflow(comfy.url, workflow(8), tmp_path / "file" / "out", events.append)
    assert events == []


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({}, "JSON object"),
        ({"nodes": [], "links": []}, r"Export \(API\)"),
        ({"1": {"inputs": {}}}, "node '1' has no class_type"),
    ],
)
def test_not_a_workflow(graph: dict[str, Any], expected: str) -> None:
    with pytest.raises(InvalidInputError, match=expected):
        run_workflow("http://127.0.0.1:1", graph)


def test_no_server() -> None:
    with pytest.raises(ServerUnavailableError, match="no answer from a ComfyUI at"):
        run_workflow("http://127.0.0.1:1", workflow(9))
    with pytest.raises(InvalidInputError, match="give one like"):
        run_workflow("localhost:8188", workflow(9))


@pytest.mark.parametrize(
    "item",
    [
        {"filename": "../x.png"},
        {"filename": "/x.png"},
        {"filename": "x.png", "subfolder": ".."},
        {"filename": "x.png", "subfolder": "a\\..\\..\\b"},
    ],
)
def test_file_names_stay_in_the_folder(item: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="outside of the output folder"):
        target_path(item, tmp_path)
