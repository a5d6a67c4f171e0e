"""One base in memory, whatever adapters the requests ask for."""

from __future__ import annotations

import hashlib
import os
import random
import shutil

import numpy as np
import pytest
import torch

from ai_toolkit_inference import Engine
from ai_toolkit_inference.core.errors import AdapterError


def weights_hash(model) -> str:
    digest = hashlib.sha256()
    for module in model.modules.values():
        for weight in module.state_dict().values():
            digest.update(weight.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def shared():
    return Engine("cpu")


@pytest.fixture
def draw(shared, ask):
    """The bytes of a small picture; draw(..., engine=None) by an engine of its own."""

    def draw(*adapters, engine=shared, **fields):
        return (engine or Engine("cpu")).sample(ask(adapters=adapters, **fields)).frames.tobytes()

    return draw


@pytest.mark.parametrize(
    ("model", "dtype", "mode"),
    [
        ("sd15", "fp32", "merged"),
        ("sd15", "bf16", "live"),
        ("sdxl", "bf16", "merged"),
        ("flux", "bf16", "live"),
        ("flux", "fp16", "merged"),
    ],
)
def test_alternating_adapters_draw_as_each_alone(draw, lora, model, dtype, mode):
    a, b = ((lora(model, seed), 1.0) for seed in (1, 2))
    how = {"model": model, "dtype": dtype, "mode": mode, "steps": 1}
    cases = [(a,), (b,), (a,), (), (a, b), (b,), (), (a, b)]
    alone = {case: draw(*case, engine=None, **how) for case in set(cases)}
    engine = Engine("cpu")
    assert [draw(*case, engine=engine, **how) for case in cases] == [alone[case] for case in cases]
    assert engine.loads == 1
    assert len(set(alone.values())) == len(alone)


def test_a_multiplier_reloads_nothing(draw, shared, lora):
    draw()
    loads = shared.loads
    drawn = [draw((lora(), value)) for value in (0.0, 0.5, 1.0, -1.0, 0.5)]
    assert shared.loads == loads
    assert drawn[0] == draw()
    assert drawn[1] == drawn[4]
    assert len(set(drawn)) == 4


def test_an_inline_multiplier_is_that_of_all_adapters(draw, lora):
    a, b = lora(seed=1), lora(seed=2)
    inline = draw((a, 0.3), (b, 2.0), prompt="a cat --m 0.5")
    assert inline == draw((a, 0.5), (b, 0.5), prompt="a cat")


@pytest.mark.parametrize("model", ["sd15", "sdxl", "flux", "flex1"])
def test_merged_and_live_agree_in_fp32(shared, ask, lora, model):
    request = {"adapters": ((lora(model), 0.7),), "steps": 1}
    merged, live = (
        shared.sample(ask(model, mode=mode, **request)).frames.astype(int)
        for mode in ("merged", "live")
    )
    assert np.abs(merged - live).max() <= 1
    assert np.abs(merged - shared.sample(ask(model, steps=1)).frames.astype(int)).max() > 5


def test_the_trainer_merges_where_nothing_is_said(draw, lora):
    adapter = (lora(), 0.7)
    modes = {mode: draw(adapter, dtype="bf16", mode=mode) for mode in ("merged", "live")}
    assert draw(adapter, dtype="bf16") == modes["merged"] != modes["live"]


@pytest.mark.parametrize("model", ["sd15", "flux"])
def test_random_requests_leave_the_base_as_loaded(ask, lora, tmp_path, model):
    wrong = tmp_path / "wrong.safetensors"  # bound only after the base is in use
    shutil.copy(lora("sdxl" if model == "sd15" else "flex1"), wrong)
    engine, rng = Engine("cpu"), random.Random(0)
    recipe = ask(model, dtype="bf16").recipe
    loaded = weights_hash(engine.model(recipe))
    seen: dict[object, bytes] = {}
    for _ in range(25):
        if rng.random() < 0.15:
            with pytest.raises(AdapterError):
                engine.sample(ask(model, dtype="bf16", adapters=((lora(model), 1.0), (wrong, 1.0))))
        else:
            seeds = rng.sample((1, 2, 3), rng.choice((0, 1, 1, 2)))
            case = tuple((lora(model, seed), rng.choice((0.5, 1.0))) for seed in seeds)
            mode = rng.choice(("merged", "live"))
            request = ask(model, dtype="bf16", adapters=case, mode=mode, steps=1)
            drawn = engine.sample(request).frames.tobytes()
            assert seen.setdefault((case, mode if case else ""), drawn) == drawn
        if rng.random() < 0.2:
            assert weights_hash(engine.model(recipe)) == loaded
    assert weights_hash(engine.model(recipe)) == loaded
    assert (engine.loads, len(seen) > 6) == (1, True)


def test_a_lora_of_another_model_leaves_the_picture_as_it_was(draw, shared, ask, lora):
    plain = draw()
    for adapters in (((lora("sdxl"), 1.0),), ((lora(), 1.0), (lora("sdxl"), 1.0))):
        with pytest.raises(AdapterError, match="does not fit sd15"):
            shared.sample(ask(adapters=adapters))
        assert draw() == plain


def test_cached_text_cannot_have_a_trained_text_encoder(shared, ask, lora):
    request = ask(adapters=((lora(), 1.0),), cached_text=True)
    with pytest.raises(AdapterError, match=r"changes text encoders .*lora_te.*cached_text off"):
        shared.plan(request)
    shared.plan(ask("lumina2", adapters=((lora("lumina2"), 1.0),), cached_text=True))


def test_a_file_that_changes_is_read_again(draw, lora, tmp_path):
    path = tmp_path / "lora.safetensors"
    shutil.copy(lora(seed=1), path)
    first = draw((path, 1.0))
    shutil.copy(lora(seed=2), path)
    os.utime(path, ns=(1, 1))
    assert draw((path, 1.0)) == draw((lora(seed=2), 1.0)) != first


def test_the_record_names_the_file_that_was_asked_for(shared, ask, lora, tmp_path):
    link = tmp_path / "latest.safetensors"
    link.symlink_to(lora())
    for path in (lora(), link):
        (told,) = shared.sample(ask(adapters=((path, 1.0),), steps=1)).info["adapters"]
        assert told["file"] == path.name


def test_more_adapters_than_are_kept(draw, lora, tmp_path):
    paths = [tmp_path / f"{index}.safetensors" for index in range(6)]
    for path in paths:
        shutil.copy(lora(), path)
    many = draw(*((path, 0.1) for path in paths), steps=1)
    assert many == draw(*((path, 0.1) for path in paths), steps=1, engine=None)


def test_an_untrained_lora_changes_no_byte(draw, lora, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(lora())
    for key in tensors:
        if "lora_up" in key:
            tensors[key].zero_()
    path = tmp_path / "untrained.safetensors"
    save_file(tensors, path)
    assert draw((path, 1.0), dtype="bf16") == draw(dtype="bf16")
    assert draw((path, 1.0), dtype="bf16", mode="live") == draw(dtype="bf16")
