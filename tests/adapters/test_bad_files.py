"""Files that are no LoRA: one clear AdapterError each, quickly, and nothing in them is run."""

from __future__ import annotations

import json
import pickle
import struct
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ai_toolkit_inference.adapters.read import read_adapter
from ai_toolkit_inference.core.errors import AdapterError

NAN, INF = float("nan"), float("inf")


class Trap:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def header(content: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str = "F32", shape=(1, 1), offsets=(0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BYTES = {
    "empty": b"",
    "one byte": b"\x01",
    "text": b"this is no LoRA\n" * 100,
    "html": b"<!DOCTYPE html><html><body>404</body></html>",
    "zeros": bytes(1000),
    "a header longer than the file": header(b"{}", length=10_000),
    "a header of exabytes": header(b"{}", length=2**63),
    "a header of 2 GB": header(b"{}", length=2**31),
    "a header of -1": header(b"{}", length=2**64 - 1),
    "a header that is no JSON": header(b"{'a': 1}"),
    "a header that is no UTF-8": header(b'{"\xff": 1}'),
    "a header that is a list": header([1, 2]),
    "a header of brackets": header(b"[" * 100_000),
    "no tensors": header({}),
    "metadata only": header({"__metadata__": {"format": "pt"}}),
    "metadata that is no text": header({"__metadata__": {"a": 1}}),
    "a dtype nobody knows": header({"x.lora_down.weight": entry("F99")}, bytes(4)),
    "data beyond the end": header({"x.lora_down.weight": entry(offsets=(0, 400))}, bytes(4)),
    "data before the start": header({"x.lora_down.weight": entry(offsets=(4, 0))}, bytes(4)),
    "a negative shape": header({"x.lora_down.weight": entry(shape=(-1, -1))}, bytes(4)),
    "a shape of exabytes": header({"x.lora_down.weight": entry(shape=(2**40, 2**40))}, bytes(4)),
    "a shape that is not the data's": header({"x.lora_down.weight": entry(shape=(2, 2))}, bytes(4)),
    "data behind the tensors": header({"x.lora_down.weight": entry()}, bytes(400)),
}


def refused(path: Path) -> str:
    started = time.perf_counter()
    with pytest.raises(AdapterError) as refusal:
        read_adapter(path)
    assert time.perf_counter() - started < 2
    assert str(path) in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize("case", BYTES)
def test_bytes_that_are_no_safetensors_file(tmp_path, case):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(BYTES[case])
    refused(path)


@pytest.mark.parametrize("part", [0.001, 0.01, 0.1, 0.5, 0.99, 0.99999])
def test_a_truncated_download(trained_lora, tmp_path, part):
    whole = trained_lora("sd15").read_bytes()
    path = tmp_path / "lora.safetensors"
    path.write_bytes(whole[: int(len(whole) * part)])
    assert "complete" in refused(path)


@pytest.mark.parametrize("name", ["lora.safetensors", "lora.pt", "lora.bin"])
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5, "torch", "torch legacy"])
def test_pickles_are_refused_and_never_run(tmp_path, name, protocol):
    path, mark = tmp_path / name, tmp_path / "mark"
    if isinstance(protocol, int):
        path.write_bytes(pickle.dumps({"a": Trap(mark)}, protocol))
    else:
        torch.save({"a": Trap(mark)}, path, _use_new_zipfile_serialization=protocol == "torch")
    refused(path)
    assert not mark.exists()
    with path.open("rb") as file:  # the trap works
        if protocol != "torch":
            for _ in range(4 if protocol == "torch legacy" else 1):
                pickle.load(file)
            assert mark.exists()


@pytest.mark.parametrize("name", ["lora.pt", "lora.ckpt", "lora", "lora.safetensors.tmp"])
def test_another_ending(trained_lora, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(trained_lora("sd15").read_bytes())
    assert "only those are read" in refused(path)


def test_an_ending_in_capitals_is_the_same(trained_lora, tmp_path):
    path = tmp_path / "LORA.SAFETENSORS"
    path.write_bytes(trained_lora("sd15").read_bytes())
    assert read_adapter(path).layers


@pytest.mark.parametrize(
    "name", ["none.safetensors", "", "folder.safetensors", "a/b.safetensors", "x" * 5000]
)
def test_no_such_file(tmp_path, name):
    (tmp_path / "folder.safetensors").mkdir()
    assert "there is no LoRA file" in refused(tmp_path / name)


A = "lora_unet_a"
DOWN, UP, ALPHA = f"{A}.lora_down.weight", f"{A}.lora_up.weight", f"{A}.alpha"
OTHER = {"b.lora_A.weight": torch.ones(2, 4), "b.lora_B.weight": torch.ones(6, 2)}
LOKR = {
    "b.lokr_w1": torch.ones(2, 2),
    "b.lokr_w2_a": torch.ones(2, 3),
    "b.lokr_w2_b": torch.ones(3, 2),
}
GOOD = {DOWN: torch.ones(2, 4), UP: torch.ones(6, 2), ALPHA: torch.tensor(2.0)}
TENSORS = {
    "no up": ({UP: None} | OTHER, f"{A} has down, which makes no layer"),
    "no down": ({DOWN: None}, f"{A} has up, which makes no layer"),
    "alpha alone": ({DOWN: None, UP: None}, "an alpha only"),
    "DoRA of others": ({f"{A}.dora_scale": torch.ones(6)}, r"dora_scale belongs to LyCORIS's DoRA"),
    "LoHa": ({f"{A}.hada_w1_a": torch.ones(6, 2)}, r"hada_w1_a belongs to LoHa"),
    "a LoRA and a LoKr": ({f"{A}.lokr_w1": torch.ones(2, 2)}, "twice, in different spellings"),
    "half a LoKr": ({"b.lokr_w1": torch.ones(2, 2)}, "b has w1, which makes no layer"),
    "other LoKr ranks": (LOKR | {"b.lokr_w2_b": torch.ones(4, 2)}, "rank 4 on one side and 3"),
    "a LoKr in one dimension": (LOKR | {"b.lokr_w1": torch.ones(2)}, r"w1 weight .*shape \[2\]"),
    "infinite alpha": (LOKR | {"b.alpha": torch.tensor(INF)}, "alpha that is not one finite"),
    "a magnitude alone": ({"b.magnitude": torch.ones(2)}, "b has magnitude, which makes"),
    "a magnitude in rows": ({f"{A}.magnitude": torch.ones(6, 1)}, r"magnitude weight of .*\[6, 1\]"),
    "a bias without weight": ({"b.diff_b": torch.ones(2)}, "b has diff_b, which makes no layer"),
    "an unknown layer": ({"transformer.a.bias": torch.ones(6)}, r"1 of 4 .*a\.bias"),
    "a bare weight": ({"unet.conv_in.weight": torch.ones(6, 2)}, "1 of 4 .*conv_in"),
    "other ranks": ({UP: torch.ones(6, 3)}, "rank 2 on one side and 3 on the other"),
    "rank 0": ({DOWN: torch.ones(0, 4), UP: torch.ones(6, 0)}, "no values"),
    "width 0": ({DOWN: torch.ones(2, 0)}, "no values"),
    "one dimension": ({DOWN: torch.ones(2)}, r"shape \[2\]"),
    "three dimensions": ({DOWN: torch.ones(2, 4, 1)}, r"shape \[2, 4, 1\]"),
    "no dimension": ({UP: torch.tensor(1.0)}, r"shape \[\]"),
    "integers": ({DOWN: torch.ones(2, 4, dtype=torch.int8)}, "torch.int8"),
    "booleans": ({UP: torch.ones(6, 2, dtype=torch.bool)}, "torch.bool"),
    "float64": ({UP: torch.ones(6, 2, dtype=torch.float64)}, "torch.float64"),
    "float8": ({UP: torch.ones(6, 2).to(torch.float8_e4m3fn)}, "torch.float8_e4m3fn"),
    "NaN in down": ({DOWN: torch.tensor([[1, 1, NAN, 1]] * 2)}, "NaN or infinite"),
    "infinity in up": ({UP: torch.full((6, 2), INF)}, "NaN or infinite"),
    "infinity in half": ({UP: torch.full((6, 2), -INF).half()}, "NaN or infinite"),
    "NaN in alpha": ({ALPHA: torch.tensor(NAN)}, "alpha that is not one finite number"),
    "two alphas": ({ALPHA: torch.ones(2)}, "alpha that is not one finite number"),
    "both spellings": (
        {f"{A}.lora_A.weight": torch.ones(2, 4), f"{A}.lora_B.weight": torch.ones(6, 2)},
        f"{A} is in it twice, in different spellings",
    ),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_make_no_lora(tmp_path, case):
    changes, message = TENSORS[case]
    path = tmp_path / "lora.safetensors"
    tensors = {key: value for key, value in (GOOD | changes).items() if value is not None}
    save_file(tensors, path)
    with pytest.raises(AdapterError, match=message):
        read_adapter(path)
    refused(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_good_file_beside_the_bad_ones(tmp_path, dtype):
    path = tmp_path / "lora.safetensors"
    save_file({key: value.to(dtype) for key, value in GOOD.items()}, path)
    (layer,) = read_adapter(path).layers
    assert (layer.name, layer.rank, layer.alpha) == (A, 2, 2.0)
