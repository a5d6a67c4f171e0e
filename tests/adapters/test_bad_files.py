"""Files that are no LoRA: one clear AdapterError each, quickly, and nothing in them is run."""

from __future__ import annotations

import json
import pickle
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ai_toolkit_inference import get_model
from ai_toolkit_inference.adapters.bind import bind
from ai_toolkit_inference.adapters.read import read_adapter
from ai_toolkit_inference.adapters.report import describe, summary
from ai_toolkit_inference.core.errors import AdapterError
from ai_toolkit_inference.core.versions import trainer_version

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
    "a magnitude in rows": (
        {f"{A}.magnitude": torch.ones(6, 1)},
        r"magnitude weight of .*\[6, 1\]",
    ),
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


D = torch.nn.Linear(8, 6)
KINDS = ("lora", "dora", "lokr", "lokr factored", "fullrank", "diff", "diff without bias")
VARIANTS = 2000  # of a file of each kind


@pytest.fixture(scope="module")
def good(draw_layer, write_layers, tmp_path_factory):
    """A valid file with two layers of a kind."""
    folder = tmp_path_factory.mktemp("good")

    def good(kind: str) -> Path:
        torch.manual_seed(0)
        modules = {"transformer.a": torch.nn.Linear(8, 6), "transformer.b": torch.nn.Linear(8, 6)}
        layers = {name: draw_layer(kind, module) for name, module in modules.items()}
        software = json.dumps({"name": "ai-toolkit", "version": "0.12.26"})
        return write_layers(folder / f"{kind}.safetensors", layers, {"software": software})

    return good


def damage(data: bytes, rng: random.Random) -> bytes:
    """The file with one to three changes: bytes turned, cut out, put in, moved or repeated."""
    changed = bytearray(data)
    header = 8 + int.from_bytes(data[:8], "little")
    for _ in range(rng.choice((1, 1, 2, 3))):
        end = rng.choice((8, header, header, len(changed)))
        at = rng.randrange(max(min(end, len(changed)), 1))
        size = rng.choice((1, 1, 2, 8, 40))
        match rng.choice((0, 0, 0, 0, 1, 1, 1, 2, 3, 4, 5)):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                changed[at : at + 1] = rng.choice(
                    (b"0", b"9", b"-", b'"', b"[", b"}", b"\\", b"\0")
                )
            case 2:
                del changed[at : at + size]
            case 3:
                changed[at:at] = rng.randbytes(size)
            case 4:
                changed[at:at] = changed[at : at + size]
            case _:
                del changed[at:]
    return bytes(changed)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_anywhere_is_an_error_or_does_no_harm(good, tmp_path, kind):
    rng, data = random.Random(kind), good(kind).read_bytes()
    path, outcomes = tmp_path / "lora.safetensors", {"read": 0, "refused": 0}
    started = time.perf_counter()
    for _ in range(VARIANTS):
        path.unlink(missing_ok=True)  # writing over a file waits for the disk
        path.write_bytes(damage(data, rng))
        try:
            adapter = read_adapter(path)
        except AdapterError as error:
            assert str(path) in str(error)
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        tensors = [tensor for layer in adapter.layers for tensor in layer.tensors()]
        assert all(tensor.isfinite().all() for tensor in tensors)
        assert all(layer.alpha is None or abs(layer.alpha) < INF for layer in adapter.layers)
        describe(adapter, "mine")
    assert min(outcomes.values()) > 10, outcomes
    assert time.perf_counter() - started < 20


def parts(kind: str) -> list[str]:
    return {
        "lora": ["lora_down.weight", "lora_up.weight", "alpha"],
        "dora": ["lora_down.weight", "lora_up.weight", "magnitude", "alpha"],
        "lokr": ["lokr_w1", "lokr_w2"],
        "lokr factored": ["lokr_w1", "lokr_w2_a", "lokr_w2_b", "alpha"],
        "fullrank": ["lora_down.weight"],
        "diff": ["diff", "diff_b"],
        "diff without bias": ["diff"],
    }[kind]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "part"), [(kind, part) for kind in KINDS for part in parts(kind)])
def test_no_part_may_hold_what_is_no_number(good, tmp_path, kind, part, dtype, value):
    path = tmp_path / "lora.safetensors"
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(good(kind)).items()}
    save_file(tensors, path)
    assert read_adapter(path).layers
    tensors[f"transformer.b.{part}"].view(-1)[-1] = value
    save_file(tensors, path)
    what = "alpha that is not one finite number" if part == "alpha" else "NaN or infinite"
    assert f"transformer.b {'has an' if part == 'alpha' else 'holds'} {what}" in refused(path)


@pytest.mark.parametrize("value", [NAN, INF])
def test_the_trainers_infinite_alpha_of_a_full_lokr_means_nothing(good, tmp_path, value):
    path = tmp_path / "lora.safetensors"
    save_file(load_file(good("lokr")) | {"transformer.a.alpha": torch.tensor(value)}, path)
    assert {layer.scale for layer in read_adapter(path).layers} == {1.0}


NUMBERS = "BOOL U8 I8 I16 U16 I32 U32 I64 U64 F64 F8_E4M3 F8_E5M2"
OTHERS = "C64 F8_E8M0 F4 F6_E2M3 F6_E3M2 X"
BITS = {"BOOL": 8, "X": 8}


@pytest.mark.parametrize("part", ["lora_down.weight", "alpha", "diff_b", "magnitude", "lokr_w1"])
@pytest.mark.parametrize("code", f"{NUMBERS} {OTHERS}".split(" "))
def test_other_dtypes(tmp_path, code, part):
    """Of a weight they are refused; an alpha may be any real number."""
    bits = BITS.get(code) or int("".join(filter(str.isdigit, code.split("_")[0])))
    shape = [] if part == "alpha" else [8] * (1 + part.startswith("lo"))
    size = 8 ** len(shape) * bits // 8
    tensors = {f"a.{part}": entry(code, shape, (0, size))}
    if part == "alpha":
        for place, name in enumerate(("lora_A", "lora_B")):
            at = size + 4 * place
            tensors[f"a.{name}.weight"] = entry("F32", (1, 1), (at, at + 4))
    path = tmp_path / "lora.safetensors"
    path.write_bytes(header(tensors, bytes([1] * size) + bytes(8 if part == "alpha" else 0)))
    if part == "alpha" and code in NUMBERS.split(" "):
        assert read_adapter(path).layers[0].alpha is not None
    else:
        refused(path)


PAIR = {
    "a.lora_A.weight": entry(offsets=(0, 4)),
    "a.lora_B.weight": entry(offsets=(4, 8)),
}


def pair_with(before: str) -> bytes:
    """A valid file of one LoRA layer, with text put in at the start of its header."""
    return header(b"{" + before.encode() + json.dumps(PAIR).encode()[1:], bytes(8))


TWICE = {
    "a tensor": '"a.lora_A.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]},',
    "a tensor elsewhere": json.dumps({"a.lora_B.weight": PAIR["a.lora_A.weight"]})[1:-1] + ",",
    "a tensor, escaped": '"\\u0061.lora_A.weight": {"dtype": "F32", "shape": [1, 1], '
    '"data_offsets": [0, 4]},',
    "the metadata": '"__metadata__": {"a": "1"}, "__metadata__": {"a": "1"},',
    "a metadata key": '"__metadata__": {"software": "1", "software": "2"},',
    "a shape": '"b.diff": {"dtype": "F32", "shape": [1], "shape": [2], "data_offsets": [0, 8]},',
}


@pytest.mark.parametrize("case", TWICE)
def test_a_header_that_says_something_twice(tmp_path, case):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(pair_with(""))
    assert read_adapter(path).layers
    path.write_bytes(pair_with(TWICE[case]))
    assert "a name is twice in its header" in refused(path)


NAMES = (
    "../../../etc/passwd",
    "/etc/passwd",
    "C:\\a",
    "a\0b",
    "x" * 100_000,
    "..",
    "%2e%2e/",
    "a\nb",
)


@pytest.mark.parametrize("name", NAMES)
def test_names_in_a_file_are_never_paths(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "lora.safetensors"
    save_file(
        {f"{name}.{key[2:]}": torch.ones(1, 1) for key in PAIR}, path, {"ss_output_name": name}
    )
    adapter = read_adapter(path)
    assert (adapter.layers[0].name, adapter.path) == (name, str(path))
    describe(adapter, "mine")
    with pytest.raises(AdapterError, match="does not fit flux"):
        bind(adapter, get_model("flux"), {"transformer": torch.nn.Sequential(D)})
    assert list(tmp_path.iterdir()) == [path]


METADATA_KEYS = (
    "software",
    "training_info",
    "ss_tag_frequency",
    "lora_adapter_metadata",
    "ss_base_model_version",
)
METADATA = {
    "deep": "[" * 100_000,
    "deep in an object": '{"a":' * 100_000,
    "a long number": '{"version": ' + "9" * 10_000 + "}",
    "an endless number": '{"step": 1e999, "a.lora_alpha": 1e999, "a.r": 1}',
    "a negative rank": '{"a.lora_alpha": 4, "a.r": -4, "a.use_rslora": true}',
    "words for numbers": '{"a.lora_alpha": "4", "a.r": {}, "a.rank_pattern": {"": []}}',
    "a list": "[1, 2]",
    "null": "null",
    "an object of nothing": '{"": {}, ".": null, "a.": 3}',
    "surrogates": '"\\ud800"',
    "no JSON": "\x00\x1b[31m",
}


@pytest.mark.parametrize("key", METADATA_KEYS)
@pytest.mark.parametrize("case", METADATA)
def test_strange_metadata(tmp_path, case, key):
    path = tmp_path / "lora.safetensors"
    metadata = json.dumps({"__metadata__": {key: METADATA[case]}})[1:-1] + ","
    path.write_bytes(pair_with(metadata))
    adapter = read_adapter(path)
    assert adapter.metadata == {key: METADATA[case]}
    assert {layer.scale for layer in adapter.layers} == {1.0}
    json.dumps(summary(adapter))
    describe(adapter, "mine")
    trainer_version(adapter.metadata)


PROGRAM = """
import resource, sys
import torch
from safetensors.torch import save_file
from ai_toolkit_inference.adapters.read import read_adapter
from ai_toolkit_inference.core.errors import AdapterError

save_file({"a.lora_A.weight": torch.ones(1, 1), "a.lora_B.weight": torch.ones(1, 1)}, sys.argv[1])
assert read_adapter(sys.argv[1]).layers  # what reading needs is imported now
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
for path in sys.argv[2:]:
    try:
        read_adapter(path)
    except AdapterError as error:
        print(error)
"""


def sparse(path: Path, tensors: dict[str, object], size: int) -> Path:
    start = header(tensors)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + size)
    return path


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc, which Linux has")
def test_memory_is_bounded(tmp_path):
    """With 300 MB to spare: a checkpoint, lies about sizes, and a LoRA that is really too large."""
    huge = 40 << 30
    weights = {"transformer.a.weight": entry("F32", (huge // 4, 1), (0, huge))}
    lora = {
        "a.lora_A.weight": entry("F32", (huge // 8, 1), (0, huge // 2)),
        "a.lora_B.weight": entry("F32", (1, huge // 8), (huge // 2, huge)),
    }
    files = [
        (sparse(tmp_path / "checkpoint.safetensors", weights, huge), "1 of 1 tensors are no"),
        (sparse(tmp_path / "longer.safetensors", PAIR, huge), "complete"),
        (sparse(tmp_path / "shorter.safetensors", lora, 8), "complete"),
        (sparse(tmp_path / "lora.safetensors", lora, huge), "does not fit into memory"),
    ]
    for number, length in enumerate((2**20, 2**31, 2**40, 2**63)):
        path = tmp_path / f"{number}.safetensors"
        path.write_bytes(header(b"{}", length=length))
        files.append((path, "complete"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "ok.safetensors", *(path for path, _ in files)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert len(told) == len(files)
    for line, (path, words) in zip(told, files, strict=True):
        assert line.startswith(str(path))
        assert words in line
