"""Clips in a real ComfyUI: files that play and carry their workflow, and a VIDEO core can use."""

from __future__ import annotations

import json
import threading
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ai_toolkit_inference.cli.comfy_client import Event, RunResult, run_workflow
from ai_toolkit_inference.core.errors import CancelledError, InvalidInputError, RemoteError
from ai_toolkit_inference.engine.files import save_animation

FRAMES = 8
FPS = 8.0
RATE = 24_000
AUDIO = {"mp4": "aac", "webm": "opus"}


@pytest.fixture(scope="module")
def frames(comfy: Any) -> np.ndarray:
    """Eight pictures of 64x48, also as frame0.png and so on in the server's input folder."""
    y, x = np.mgrid[0:48, 0:64]
    shots = [np.stack([x * 3 + 8 * t, y * 4, 0 * x + 20 * t], -1) for t in range(FRAMES)]
    for index, shot in enumerate(shots):
        Image.fromarray(shot.astype(np.uint8)).save(comfy.base / "input" / f"frame{index}.png")
    return np.stack(shots).astype(np.uint8)


@pytest.fixture(scope="module")
def sounds(comfy: Any) -> np.ndarray:
    """One second of stereo, (2, samples); tone.wav, and three seconds of mono as long.wav."""
    time = np.arange(RATE) / RATE
    sound = np.stack([np.sin(time * 2 * np.pi * 440), np.sin(time * 2 * np.pi * 660)]) * 0.5
    _write_wav(comfy.base / "input" / "tone.wav", sound)
    _write_wav(comfy.base / "input" / "long.wav", np.tile(sound[:1], 3))
    return sound


def _write_wav(path: Path, sound: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(sound))
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((sound.T * 32767).astype("<i2").tobytes())


def graph(frames: int = FRAMES, audio: str = "", **inputs: Any) -> dict[str, Any]:
    """Pictures from files, batched, and our node (`save`) on top; sound from a file, if named."""
    nodes: dict[str, Any] = {"batch0": _node("LoadImage", image="frame0.png")}
    for index in range(1, frames):
        nodes[f"load{index}"] = _node("LoadImage", image=f"frame{index}.png")
        pair = {"image1": [f"batch{index - 1}", 0], "image2": [f"load{index}", 0]}
        nodes[f"batch{index}"] = _node("ImageBatch", **pair)
    saved = {"fps": FPS, "filename_prefix": "clips/clip", "format": "mp4", "crf": 5} | inputs
    nodes["save"] = _node("AIToolkitSaveVideo", images=[f"batch{frames - 1}", 0], **saved)
    if audio:
        nodes["sound"] = _node("LoadAudio", audio=audio)
        nodes["save"]["inputs"]["audio"] = ["sound", 0]
    return nodes


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def clip_of(result: RunResult) -> Path:
    (clip,) = [file for file in result.files if file.name.startswith("clip")]
    return clip


def decoded(clip: Path) -> np.ndarray:
    import av

    with av.open(str(clip)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def heard(clip: Path) -> tuple[np.ndarray, int]:
    import av

    with av.open(str(clip)) as file:
        stream = file.streams.audio[0]
        found = [frame.to_ndarray() for frame in file.decode(stream)]
        return np.concatenate(found, axis=-1), stream.rate


@pytest.mark.parametrize("ending", AUDIO)
def test_a_clip_with_sound_plays_and_carries_its_workflow(
    comfy: Any, frames: np.ndarray, sounds: np.ndarray, tmp_path: Path, ending: str
) -> None:
    import av

    workflow = graph(audio="tone.wav", format=ending)
    extra = {"workflow": {"nodes": [{"title": "a brace: }"}]}}
    events: list[Event] = []
    result = run_workflow(
        comfy.url, workflow, tmp_path, events.append, timeout=120, extra_pnginfo=extra
    )
    clip = clip_of(result)
    assert clip.suffix == f".{ending}"
    assert np.abs(decoded(clip).astype(int) - frames).mean() < 6
    with av.open(str(clip)) as file:
        assert float(file.streams.video[0].average_rate or 0) == FPS
        assert file.streams.audio[0].codec_context.codec.canonical_name == AUDIO[ending]
        assert (file.duration or 0) / 1e6 == pytest.approx(1.0, abs=0.06)
        tags = {key.lower(): value for key, value in file.metadata.items()}
    told = json.loads(tags["prompt"])
    assert {name: node["class_type"] for name, node in told.items()} == {
        name: node["class_type"] for name, node in workflow.items()
    }
    assert told["save"]["inputs"] == workflow["save"]["inputs"]
    assert json.loads(tags["workflow"]) == extra["workflow"]
    found, rate = heard(clip)
    for channel, hertz in zip(found, (440, 660), strict=True):
        spectrum = np.abs(np.fft.rfft(channel[rate // 4 : rate // 2]))
        assert spectrum.argmax() * 4 == pytest.approx(hertz, abs=8)
    shown = [event for event in events if event.kind == "progress" and event.node == "save"]
    assert (shown[-1].value, shown[-1].total) == (FRAMES, FRAMES)


def test_the_webp_is_the_trainers_and_carries_its_workflow(
    comfy: Any,
    frames: np.ndarray,
    sounds: np.ndarray,
    webp_texts: Callable[[Path], dict[str, str]],
    tmp_path: Path,
) -> None:
    """Its bytes but for the texts, and without a workflow all of them, whatever is connected."""
    workflow = graph(audio="tone.wav", format="webp")
    save_animation(frames, tmp_path / "bare.webp", FPS)
    script = graph(audio="tone.wav", format="webp", filename_prefix="clip_bare")
    bare = run_workflow(comfy.url, script, tmp_path, timeout=120)
    assert clip_of(bare).read_bytes() == (tmp_path / "bare.webp").read_bytes()
    extra = {"workflow": {"nodes": [{"title": "a brace: }"}]}}
    result = run_workflow(comfy.url, workflow, tmp_path, timeout=120, extra_pnginfo=extra)
    texts = webp_texts(clip_of(result))
    assert json.loads(texts["prompt"])["save"]["inputs"] == workflow["save"]["inputs"]
    assert json.loads(texts["workflow"]) == extra["workflow"]
    save_animation(frames, tmp_path / "ours.webp", FPS, tags=texts)
    assert clip_of(result).read_bytes() == (tmp_path / "ours.webp").read_bytes()
    assert result.outputs["save"]["animated"] == [True]


@pytest.mark.parametrize("ending", AUDIO)
def test_one_frame_and_sound_that_is_cut(
    comfy: Any, frames: np.ndarray, sounds: np.ndarray, tmp_path: Path, ending: str
) -> None:
    result = run_workflow(
        comfy.url, graph(1, "long.wav", format=ending, fps=2.0), tmp_path, timeout=120
    )
    assert decoded(clip_of(result)).shape == (1, 48, 64, 3)
    found, rate = heard(clip_of(result))
    assert len(found) == 1
    assert found.shape[1] / rate == pytest.approx(0.5, abs=0.09)


@pytest.mark.parametrize("ending", ["mp4", "webm", "webp"])
def test_odd_sides(comfy: Any, frames: np.ndarray, tmp_path: Path, ending: str) -> None:
    workflow = graph(3, format=ending)
    workflow["crop"] = _node("ImageCrop", image=["batch2", 0], width=63, height=47, x=0, y=0)
    workflow["save"]["inputs"]["images"] = ["crop", 0]
    clip = clip_of(run_workflow(comfy.url, workflow, tmp_path, timeout=120))
    if ending == "webp":
        assert Image.open(clip).size == (63, 47)
    else:
        assert decoded(clip).shape == (3, 46, 62, 3)


@pytest.mark.parametrize("audio", ["", "tone.wav"])
def test_core_nodes_take_the_video(
    comfy: Any,
    frames: np.ndarray,
    sounds: np.ndarray,
    tmp_path: Path,
    audio: str,
) -> None:
    workflow = graph(audio=audio, format="webm")
    core = {"filename_prefix": "core", "format": "auto", "codec": "auto"}
    workflow["core"] = _node("SaveVideo", video=["save", 0], **core)
    workflow["parts"] = _node("GetVideoComponents", video=["save", 0])
    workflow["shots"] = _node("SaveImage", images=["parts", 0], filename_prefix="shot")
    if audio:
        workflow["flac"] = _node("SaveAudio", audio=["parts", 1], filename_prefix="sound")
    # the rate comes back as well, and makes our clip again
    workflow["again"] = _node(
        "AIToolkitSaveVideo",
        **graph(format="webp", filename_prefix="again")["save"]["inputs"]
        | {"images": ["parts", 0], "fps": ["parts", 2]},
    )
    result = run_workflow(comfy.url, workflow, tmp_path, timeout=180)
    files = {file.name.split("_")[0]: file for file in result.files if "shot" not in file.name}
    assert files["core"].suffix == ".mp4"
    assert np.abs(decoded(files["core"]).astype(int) - frames).mean() < 12
    shots = sorted(file for file in result.files if file.name.startswith("shot"))
    assert np.array_equal(np.stack([np.asarray(Image.open(shot)) for shot in shots]), frames)
    save_animation(frames, tmp_path / "ours.webp", FPS)
    assert files["again"].read_bytes() == (tmp_path / "ours.webp").read_bytes()
    if audio:
        assert heard(files["core"])[0].shape[0] == 2
        found, rate = heard(files["sound"])
        assert (rate, found.size) == (RATE, sounds.size)


def test_interrupt_while_encoding_leaves_no_file(
    comfy: Any, ask: Callable[..., Any], frames: np.ndarray, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (320, 320, 3), np.uint8)
    Image.fromarray(noise).save(comfy.base / "input" / "noise.png")
    folder = comfy.base / "output" / "stopped"
    for ending in ("mp4", "webm", "webp"):
        seen: list[float] = []

        def stop(event: Event, seen: list[float] = seen) -> None:
            if event.kind == "progress" and event.node == "save":
                if not seen:
                    threading.Thread(target=ask, args=("interrupt", {})).start()
                seen.append(event.value)

        saved = {"fps": FPS, "filename_prefix": "stopped/clip", "format": ending, "crf": 0}
        workflow = {
            "load": _node("LoadImage", image="noise.png"),
            "repeat": _node("RepeatImageBatch", image=["load", 0], amount=300),
            "save": _node("AIToolkitSaveVideo", images=["repeat", 0], **saved),
        }
        with pytest.raises(CancelledError):
            run_workflow(comfy.url, workflow, on_event=stop, timeout=120)
        assert max(seen) < 300
        assert list(folder.iterdir()) == []
    assert clip_of(run_workflow(comfy.url, graph(), tmp_path, timeout=120)).stat().st_size


def test_what_cannot_be_a_clip_fails_on_the_node(
    comfy: Any, frames: np.ndarray, sounds: np.ndarray
) -> None:
    thin = graph(2)
    thin["crop"] = _node("ImageCrop", image=["batch1", 0], width=1, height=48, x=0, y=0)
    thin["save"]["inputs"]["images"] = ["crop", 0]
    with pytest.raises(RemoteError, match="1x48 px; mp4 and webm need 2 px"):
        run_workflow(comfy.url, thin, timeout=60)
    for inputs, said in (({"fps": 0.0}, "fps"), ({"crf": 99}, "crf"), ({"format": "gif"}, "gif")):
        with pytest.raises(InvalidInputError, match=said):
            run_workflow(comfy.url, graph(2, **inputs), timeout=30)
