"""Loaded weights come back from the checkpoint's file where it holds them, else from a copy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ai_toolkit_inference.adapters.apply import AdapterState
from ai_toolkit_inference.adapters.bind import BoundLayer
from ai_toolkit_inference.adapters.full import DiffLayer
from ai_toolkit_inference.adapters.originals import StoredWeights
from ai_toolkit_inference.core.errors import CheckpointError

CPU = torch.device("cpu")
FILE = "model.safetensors"
NAN = float("nan")


@pytest.fixture
def module() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(64, 48).requires_grad_(False)


def store(folder: Path, tensors: dict[str, torch.Tensor], file: str = FILE) -> StoredWeights:
    save_file(tensors, folder / file)
    return StoredWeights({"unet": folder})


def mapped(path: Path, value: torch.Tensor) -> bool:
    """Whether the tensor's memory is a mapping of the file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split(maxsplit=5)
        start, end = (int(part, 16) for part in span.split("-"))
        if start <= value.data_ptr() < end:
            return name == str(path.resolve())
    return False


needs_maps = pytest.mark.skipif(
    not Path("/proc/self/maps").exists(), reason="needs /proc/self/maps, which Linux has"
)


@needs_maps
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_files_own_memory_is_the_original(module, tmp_path, dtype):
    module.to(dtype)
    stored = store(tmp_path, {"a.b.weight": module.weight, "a.b.bias": module.bias})
    loaded = module.weight.clone()
    original = stored.original("unet.a.b", module, "weight")
    assert original.file == tmp_path / FILE
    assert mapped(tmp_path / FILE, original.value)
    assert not mapped(tmp_path / FILE, loaded)
    module.weight.add_(1)
    assert torch.equal(original.read(), loaded)
    original.restore()
    assert torch.equal(module.weight, loaded)


@needs_maps
def test_a_file_in_another_dtype_serves_where_the_cast_gives_the_same_bits(module, tmp_path):
    stored = store(tmp_path, {"a.weight": module.weight})
    module.to(torch.bfloat16)  # as loading casts
    loaded = module.weight.clone()
    original = stored.original("unet.a", module, "weight")
    assert mapped(tmp_path / FILE, original.value)
    assert original.value.dtype == torch.float32
    module.weight.zero_()
    original.restore()
    assert torch.equal(module.weight, loaded)


def test_a_file_in_every_shard(module, tmp_path):
    other = torch.nn.Linear(3, 3).requires_grad_(False)
    store(tmp_path, {"a.weight": module.weight}, "model-00001-of-00002.safetensors")
    stored = store(tmp_path, {"b.weight": other.weight}, "model-00002-of-00002.safetensors")
    assert stored.original("unet.a", module, "weight").file == (
        tmp_path / "model-00001-of-00002.safetensors"
    )
    assert stored.original("unet.b", other, "weight").file == (
        tmp_path / "model-00002-of-00002.safetensors"
    )


@pytest.mark.parametrize("inner", ["encoder.layers.0.mlp.fc1", "text_model.encoder.layers.0.fc1"])
def test_clip_is_found_with_and_without_its_level(module, tmp_path, inner):
    name = f"text_model.{inner.removeprefix('text_model.')}.weight"
    save_file({name: module.weight}, tmp_path / FILE)
    stored = StoredWeights({"text_encoder": tmp_path})
    assert stored.original(f"text_encoder.{inner}", module, "weight").file == tmp_path / FILE


def _negate_zero(weight: torch.Tensor) -> torch.Tensor:
    return torch.where(weight == 0, -0.0, weight)


UNLIKE = {
    "another number": lambda weight: weight + 1e-3,
    "the other zero": _negate_zero,
    "another shape": lambda weight: weight.T,
    "a number that rounds to another": lambda weight: weight.to(torch.float16),
    "a number of 8 bits": lambda weight: weight.to(torch.float8_e4m3fn),
    "NaN": lambda weight: weight * NAN,
}


@pytest.mark.parametrize("case", UNLIKE)
def test_what_the_file_holds_otherwise_is_copied(module, tmp_path, case):
    module.weight[0, 0] = 0.0
    stored = store(tmp_path, {"a.weight": UNLIKE[case](module.weight).contiguous()})
    loaded = module.weight.clone()
    original = stored.original("unet.a", module, "weight")
    assert original.file is None
    module.weight.mul_(2)
    original.restore()
    assert torch.equal(module.weight.view(torch.int32), loaded.view(torch.int32))


def test_equal_nans_are_the_same_bits(module, tmp_path):
    module.weight[0] = NAN
    stored = store(tmp_path, {"a.weight": module.weight})
    assert stored.original("unet.a", module, "weight").file is not None


@pytest.mark.parametrize("path", ["unet.other", "vae.a", "unet"])
def test_what_no_file_holds_is_copied(module, tmp_path, path):
    stored = store(tmp_path, {"a.weight": module.weight})
    original = stored.original(path, module, "weight")
    assert original.file is None
    assert original.value.data_ptr() != module.weight.data_ptr()


@pytest.mark.parametrize("content", [b"", b"broken" * 100, bytes(8)])
def test_a_broken_file_beside_the_weights_is_no_hindrance(module, tmp_path, content):
    """Loading does not look at it either."""
    (tmp_path / "other.safetensors").write_bytes(content)
    stored = store(tmp_path, {"a.weight": module.weight})
    assert stored.original("unet.a", module, "weight").file == tmp_path / FILE


def merge(state, applied, module, path="unet.a"):
    layer = DiffLayer("a", None, torch.ones_like(module.weight, dtype=torch.float32))
    state.switch([applied([BoundLayer(path, module, layer)])])


def _touch(file: Path) -> None:
    os.utime(file, ns=(1, 1))


def _replace(file: Path) -> None:
    shutil.copy2(file, file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)


CHANGES = {"touched": _touch, "replaced": _replace, "deleted": Path.unlink}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_is_not_restored_from(module, tmp_path, applied, change):
    stored = store(tmp_path, {"a.weight": module.weight})
    state = AdapterState(CPU, stored)
    merge(state, applied, module)
    CHANGES[change](tmp_path / FILE)
    for act in (state.clear, lambda: state.switch([]), state.clear, lambda: state.switch([])):
        with pytest.raises(CheckpointError, match="was changed while its model was in memory"):
            act()  # and it does not pretend to be clean the next time


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_before_it_was_needed_is_copied(module, tmp_path, applied, change):
    other = torch.nn.Linear(3, 3).requires_grad_(False)
    stored = store(tmp_path, {"a.weight": module.weight, "b.weight": other.weight})
    state, loaded = AdapterState(CPU, stored), module.weight.clone()
    merge(state, applied, other, "unet.b")  # maps the file
    state.clear()
    CHANGES[change](tmp_path / FILE)
    merge(state, applied, module)
    assert not torch.equal(module.weight, loaded)
    state.clear()
    assert torch.equal(module.weight, loaded)


PROGRAM = """
import os, sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from ai_toolkit_inference.adapters.apply import AdapterState, Applied
from ai_toolkit_inference.adapters.bind import BoundLayer
from ai_toolkit_inference.adapters.lora import LoraLayer
from ai_toolkit_inference.adapters.originals import StoredWeights

folder, what = Path(sys.argv[1]), sys.argv[2]
file = folder / "model.safetensors"
count, side = 5, 3200  # of 41 MB each in fp32
torch.manual_seed(0)
layers = [torch.nn.Linear(side, side, bias=False).requires_grad_(False) for _ in range(count)]
if what != "copies":
    save_file({f"{i}.weight": layer.weight for i, layer in enumerate(layers)}, file)
state = AdapterState(torch.device("cpu"), StoredWeights({"unet": folder}))

def adapter(number, chosen):
    down, up = torch.randn(4, side), torch.randn(side, 4)
    return Applied(str(number), tuple(
        BoundLayer(f"unet.{i}", layers[i], LoraLayer("x", None, down, up)) for i in chosen
    ), 0.5, False)

def anonymous():
    status = Path("/proc/self/status").read_text().split("RssAnon:")[1]
    return int(status.split()[0]) * 1024

if what == "truncated":
    state.switch([adapter(0, [0])])
    state.clear()
    file.write_bytes(b"")  # a mapped page behind the end of its file kills the process
    state.switch([adapter(1, range(count))])
    state.clear()
    print("alive")
    raise SystemExit
state.switch([adapter(9, [0])])
state.clear()
before, most = anonymous(), 0
for number in range(3):
    state.switch([adapter(number, range(count))])
    most = max(most, anonymous())
print((most - before) / (count * side * side * 4))
"""


def program(folder: Path, what: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), what], capture_output=True, text=True
    )


@needs_maps
@pytest.mark.parametrize(("what", "least", "most"), [("file", 0.0, 0.3), ("copies", 0.9, 1.3)])
def test_at_most_the_touched_weights_are_held_twice(tmp_path, what, least, most):
    done = program(tmp_path, what)
    assert done.returncode == 0, done.stderr
    assert least <= max(float(done.stdout), 0) <= most


@needs_maps
def test_a_file_cut_short_does_not_kill_the_process(tmp_path):
    done = program(tmp_path, "truncated")
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
