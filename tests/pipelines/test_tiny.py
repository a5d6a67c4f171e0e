"""Tiny checkpoints: complete, small, quick, and the same numbers from every library version."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ai_toolkit_inference import get_model, list_models
from ai_toolkit_inference.core.errors import InvalidInputError, OutputError
from ai_toolkit_inference.pipelines._loading import ENCODERS
from ai_toolkit_inference.pipelines._tiny import WITH_HEAD, write_tiny

# To renew after a change that is meant (and then raise TINY_FORMAT): run this file as a script.
GOLDEN = Path(__file__).with_name("tiny.json")
IDS = [spec.id for spec in list_models()]
OWN = {"connectors": "ltx2", "vocoder": "ltx2"}  # parts of one pipeline of diffusers


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.parent.name}/{name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in sorted(load_file(path).items())
    }


def fingerprint(folder: Path) -> dict[str, object]:
    """A hash of all names and shapes, and sums over the numbers, which CPUs round differently."""
    tensors = weights(folder)
    shapes = json.dumps([(name, list(tensor.shape)) for name, tensor in tensors.items()])
    sums: dict[str, list[float]] = {}
    for name, tensor in tensors.items():
        values = tensor.double().flatten()
        waves = torch.cos(torch.arange(len(values), dtype=torch.float64) * 0.37 + len(name))
        part = sums.setdefault(name.split("/")[0], [0.0, 0.0])
        part[0] += float((values * waves).sum())
        part[1] += float(values.abs().sum())
    rounded = {part: [round(value, 3) for value in pair] for part, pair in sums.items()}
    return {"layout": hashlib.sha256(shapes.encode()).hexdigest(), "sums": rounded}


@pytest.fixture(scope="module", params=IDS)
def written(request, tmp_path_factory):
    """(spec, folder, seconds it took)"""
    write_tiny(get_model(request.param), tmp_path_factory.mktemp("warm") / "up")
    folder = tmp_path_factory.mktemp("tiny") / request.param
    started = time.perf_counter()
    write_tiny(get_model(request.param), folder)
    return get_model(request.param), folder, time.perf_counter() - started


def test_it_is_small_and_quick(written):
    _, folder, seconds = written
    assert sum(len(data) for data in contents(folder).values()) < 20e6
    assert seconds < 2
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_the_weights_are_those_of_every_library_version(written):
    spec, folder, _ = written
    golden, found = json.loads(GOLDEN.read_text())[spec.id], fingerprint(folder)
    assert found["layout"] == golden["layout"]
    assert found["sums"].keys() == golden["sums"].keys()
    for part, sums in golden["sums"].items():
        assert found["sums"][part] == pytest.approx(sums, abs=0.02)


def test_the_layout_is_the_hubs(written):
    spec, folder, _ = written
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == spec.pipeline
    parts = {name for name, value in index.items() if isinstance(value, list) and value[0]}
    assert parts == {path.name for path in folder.iterdir() if path.is_dir()}
    assert parts > set(spec.components)
    for name in spec.components:
        files = {path.name for path in (folder / name).iterdir()}
        encoder = name.startswith((*ENCODERS, "image_encoder"))
        stem = "model" if encoder else "diffusion_pytorch_model"
        assert files == {"config.json", f"{stem}.safetensors"}
        library = OWN.get(name, "transformers" if encoder else "diffusers")
        if spec.network and name in spec.lora.denoisers:
            library = spec.network.split(".")[-1]
        config = json.loads((folder / name / "config.json").read_text())
        named = config["architectures"][0] if encoder else config["_class_name"]
        assert index[name][0] == library
        assert named in (index[name][1], WITH_HEAD.get(index[name][1]))
    assert json.loads((folder / "scheduler" / "scheduler_config.json").read_text())


def test_clip_tensors_are_named_as_in_released_files(written):
    spec, folder, _ = written
    for name in spec.clip_tokenizers:
        encoder = name.replace("tokenizer", "text_encoder")
        names = {key.split("/")[1] for key in weights(folder) if key.startswith(f"{encoder}/")}
        others = {key for key in names if not key.startswith("text_model.")}
        assert others <= {"text_projection.weight"}
        assert "text_model.embeddings.token_embedding.weight" in names
        files = {path.name for path in (folder / name).iterdir()}
        assert {"vocab.json", "merges.txt", "tokenizer_config.json"} <= files


def test_a_seed_decides_every_byte(written, tmp_path):
    spec, folder, _ = written
    same, other = (write_tiny(spec, tmp_path / str(seed), seed) for seed in (0, 1))
    assert contents(same) == contents(folder)
    ours, theirs = weights(folder), weights(other)
    assert ours.keys() == theirs.keys()
    assert not [name for name, tensor in ours.items() if torch.equal(tensor, theirs[name])]


def test_the_callers_random_numbers_are_not_used(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one = write_tiny(get_model("sd15"), tmp_path / "one")
    after_one = torch.get_rng_state()
    torch.manual_seed(6)
    two = write_tiny(get_model("sd15"), tmp_path / "two")
    assert contents(one) == contents(two)
    torch.set_rng_state(after_one)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("seed", [-1, 2**31, 2**64])
def test_seeds_out_of_range(tmp_path, seed):
    with pytest.raises(InvalidInputError, match=f"seed={seed} "):
        write_tiny(get_model("sd15"), tmp_path / "a", seed)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "picture.png").write_bytes(b"precious")
    with pytest.raises(OutputError, match="mine could not be written"):
        write_tiny(get_model("sd15"), tmp_path / "mine")
    assert contents(tmp_path) == {"mine/picture.png": b"precious"}


def test_a_place_that_cannot_hold_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="could not be written"):
        write_tiny(get_model("sd15"), tmp_path / "file" / "tiny")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as root:
        prints = {
            spec.id: fingerprint(write_tiny(spec, Path(root) / spec.id)) for spec in list_models()
        }
    GOLDEN.write_text(json.dumps(prints, indent=1) + "\n")
