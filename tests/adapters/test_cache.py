"""Parsed adapters are kept by content, up to a size, whoever asks."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ai_toolkit_inference.adapters.cache import AdapterCache
from ai_toolkit_inference.adapters.read import read_adapter
from ai_toolkit_inference.core.errors import AdapterError

SIZE = 4 * (2 * 16 + 16 * 2)  # bytes of the tensors in one file


def write(path: Path, value: float) -> Path:
    """A LoRA file whose weights are all this value."""
    pair = {"a.lora_A.weight": torch.full((2, 16), value)}
    path.unlink(missing_ok=True)
    save_file(pair | {"a.lora_B.weight": torch.full((16, 2), value)}, path)
    return path


@pytest.fixture
def files(tmp_path):
    return [write(tmp_path / f"{number}.safetensors", float(number)) for number in range(5)]


def kept(cache: AdapterCache, files: list[Path]) -> list[int]:
    return [number for number, file in enumerate(files) if read_adapter(file).digest in cache]


def test_a_file_is_read_once(files):
    cache = AdapterCache()
    first, again = cache.get(files[0]), cache.get(str(files[0]))
    assert first.layers is again.layers
    assert read_adapter(files[0]).layers is not first.layers
    assert read_adapter(files[0]).digest == first.digest


def test_the_same_content_under_two_names_is_kept_once(files, tmp_path):
    cache = AdapterCache()
    copy, link = tmp_path / "copy.safetensors", tmp_path / "link.safetensors"
    shutil.copy(files[0], copy)
    link.symlink_to(files[0])
    adapters = [cache.get(path) for path in (files[0], copy, link)]
    assert len({id(adapter.layers) for adapter in adapters}) == 1
    assert [adapter.path for adapter in adapters] == [str(files[0]), str(copy), str(link)]
    assert len(cache._adapters) == 1


def test_the_longest_unused_are_forgotten(files):
    cache = AdapterCache(max_bytes=3 * SIZE)
    assert cache.get(files[0]).nbytes == SIZE
    for number in (1, 2):
        cache.get(files[number])
    assert kept(cache, files) == [0, 1, 2]
    cache.get(files[0])
    cache.get(files[3])
    assert kept(cache, files) == [0, 2, 3]
    cache.get(files[4])
    assert kept(cache, files) == [0, 3, 4]
    assert len(cache._digests) == 3
    first = cache.get(files[1])  # read again
    assert first.layers is cache.get(files[1]).layers


def test_the_newest_is_kept_whatever_its_size(files):
    cache = AdapterCache(max_bytes=1)
    for file in files[:2]:
        adapter = cache.get(file)
        assert adapter.layers is cache.get(file).layers
    assert kept(cache, files) == [1]


def test_the_names_of_one_content_are_bounded(files, tmp_path):
    """A file that is written again and again, as a training does, leaves nothing behind."""
    cache = AdapterCache(max_bytes=2 * SIZE)
    for number in range(50):
        cache.get(write(tmp_path / "last.safetensors", float(number)))
    assert len(cache._adapters) == 2
    assert len(cache._digests) <= 2


@pytest.mark.parametrize("same_size", [True, False])
def test_a_changed_file_is_read_again(files, same_size):
    cache = AdapterCache()
    before = cache.get(files[0])
    if same_size:
        write(files[0], 7.0)
        os.utime(files[0], ns=(1, 1))
    else:
        save_file({"a.diff": torch.full((3,), 7.0)}, files[0])
    after = cache.get(files[0])
    assert after.digest != before.digest
    assert {float(tensor.max()) for tensor in after.layers[0].tensors()} == {7.0}
    assert cache.get(files[0]).layers is after.layers


def test_a_file_that_breaks_or_goes_is_refused(files):
    cache = AdapterCache()
    good = cache.get(files[0])
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[:-1])
    with pytest.raises(AdapterError, match="complete"):
        cache.get(files[0])
    files[0].unlink()
    with pytest.raises(AdapterError, match="there is no LoRA file"):
        cache.get(files[0])
    files[0].write_bytes(whole)
    assert cache.get(files[0]).layers is good.layers


def test_threads_share_what_one_of_them_read(files):
    cache = AdapterCache(max_bytes=3 * SIZE)
    expected = [read_adapter(file).digest for file in files]

    def ask(number: int) -> bool:
        adapter = cache.get(files[number])
        values = {float(tensor.mean()) for tensor in adapter.layers[0].tensors()}
        return adapter.digest == expected[number] and values == {float(number)}

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, [index * 7 % 5 for index in range(400)]))
        together = pool.map(cache.get, [files[0]] * 40)
        assert len({id(adapter.layers) for adapter in together}) == 1
    assert len(cache._adapters) == 3
