"""The engine: equal requests give equal bytes, whoever else is at work in the process."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from ai_toolkit_inference import Engine, list_models
from ai_toolkit_inference.core.errors import AdapterError, InvalidInputError, UnknownModelError
from ai_toolkit_inference.core.requests import MODES

IDS = [spec.id for spec in list_models()]


def pixels(result) -> str:
    return hashlib.sha256(result.frames.tobytes()).hexdigest()


def base_hash(engine, request) -> str:
    """SHA-256 over every weight of the loaded model, with whatever is merged into it."""
    digest = hashlib.sha256()
    for name, module in engine._base.model.modules.items():
        for key, weight in module.state_dict().items():
            data = weight.contiguous().view(torch.uint8).numpy().tobytes()
            digest.update(f"{name}.{key}".encode() + data)
    return digest.hexdigest()


@pytest.fixture(scope="module")
def fresh():
    """What an engine that has done nothing else draws."""
    return cache(lambda request: pixels(Engine("cpu").sample(request)))


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("model", IDS)
def test_equal_requests_give_equal_bytes(engine, ask, model, dtype):
    first, again, other = (engine.sample(ask(model, dtype=dtype, seed=seed)) for seed in (1, 1, 2))
    assert pixels(first) == pixels(again) != pixels(other)
    assert first.frames.std() > 10


def test_every_setting_shows(engine, ask):
    base = {"negative_prompt": "", "guidance_scale": 4.0}
    changes = (
        {},
        {"prompt": "a red dog"},
        {"negative_prompt": "blurry"},
        {"width": 72},
        {"height": 72},
        {"steps": 3},
        {"guidance_scale": 5.0},
        {"seed": 2},
        {"sampler": "ddim"},
        {"dtype": "bf16"},
        {"prompt": "a photo of cat --cfg 3"},
    )
    drawn = [pixels(engine.sample(ask(**(base | change)))) for change in changes]
    assert len(set(drawn)) == len(changes)


def test_the_record_says_what_was_drawn(engine, ask, lora, tmp_path):
    prompt = "a [trigger] --w 79 --seed 7 --m 0.5 --steps 1"
    request = ask(prompt=prompt, trigger_word="cat", adapters=((lora(), 1.0),), mode="live")
    result = engine.sample(request)
    info = json.loads(json.dumps(result.info))
    assert result.frames.shape == (1, 64, 72, 3)
    assert (info["width"], info["height"], info["seed"], info["steps"]) == (72, 64, 7, 1)
    assert info["prompt"] == "a cat"
    (adapter,) = info["adapters"]
    assert adapter["sha256"] == hashlib.sha256(lora().read_bytes()).hexdigest()
    assert (adapter["file"], adapter["multiplier"], adapter["mode"]) == (lora().name, 0.5, "live")
    assert adapter["layers"] > 100
    assert str(tmp_path.parent) not in json.dumps(info)


@pytest.mark.parametrize(
    ("version", "expected"), [("auto", "0.7.19"), ("0.7.19", "0.7.19"), ("0.12.26", "0.12.26")]
)
def test_the_lora_chooses_the_version_unless_told(engine, ask, trained_lora, version, expected):

    request = ask(prompt="caf\u00c3\u00a9 cat", adapters=((trained_lora("sd15", "0.7.19"), 1.0),))
    request = replace(request, recipe=replace(request.recipe, trainer_version=version))
    assert engine.sample(request).info["trainer_version"] == expected


# --- cancelling ------------------------------------------------------------------------------


class Stop(BaseException):
    pass


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_a_cancelled_run_leaves_no_trace(ask, lora, mode, stop_at):
    def stop(step):
        if step.index == stop_at:
            raise Stop

    engine = Engine("cpu")
    plain = ask(steps=3)
    drawn = pixels(engine.sample(plain))
    loaded = base_hash(engine, plain)
    with pytest.raises(Stop):
        engine.sample(ask(steps=3, adapters=((lora(), 1.0),), mode=mode), on_step=stop)
    assert pixels(engine.sample(plain)) == drawn
    assert base_hash(engine, plain) == loaded
    assert engine.loads == 1


def test_a_run_cancelled_while_loading(ask):
    def stop(_):
        raise Stop

    engine = Engine("cpu")
    with pytest.raises(Stop):
        engine.sample(ask(), on_status=stop)
    assert not engine.holds(ask().recipe)
    assert engine.sample(ask()).frames.any()


# --- the process around it -------------------------------------------------------------------


SWITCHES = {
    "fp32 matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "cuda tf32": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "cudnn tf32": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "cudnn benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "cudnn deterministic": lambda: setattr(torch.backends.cudnn, "deterministic", True),
    "math sdp": lambda: torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True),
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "matmul, new name": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "everything, new name": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "oneDNN, new name": lambda: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
}


def readings() -> dict[str, object]:
    """All switches as they can be read; torch refuses some mixtures."""
    backends = torch.backends
    read = {
        "precision": torch.get_float32_matmul_precision,
        "cuda tf32": lambda: backends.cuda.matmul.allow_tf32,
        "cudnn tf32": lambda: backends.cudnn.allow_tf32,
        "benchmark": lambda: backends.cudnn.benchmark,
        "deterministic": lambda: backends.cudnn.deterministic,
        "bf16": lambda: backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        "fp16": lambda: backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        "math sdp": backends.cuda.fp16_bf16_reduction_math_sdp_allowed,
        "dtype": torch.get_default_dtype,
        "all": lambda: backends.fp32_precision,
        "cuda": lambda: backends.cuda.matmul.fp32_precision,
        "conv": lambda: backends.cudnn.conv.fp32_precision,
        "oneDNN": lambda: backends.mkldnn.matmul.fp32_precision,
        "oneDNN conv": lambda: backends.mkldnn.conv.fp32_precision,
        "grad": torch.is_grad_enabled,
        "inference": torch.is_inference_mode_enabled,
        "autocast": lambda: torch.is_autocast_enabled("cpu"),
        "random": lambda: torch.get_rng_state().tolist(),
    }
    found = {}
    for name, get in read.items():
        try:
            found[name] = get()
        except (RuntimeError, AttributeError) as error:
            found[name] = type(error).__name__
    return found


@pytest.fixture
def reset():
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = False
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)
    if hasattr(torch.backends, "fp32_precision"):
        torch.backends.fp32_precision = "none"
        torch.backends.mkldnn.matmul.fp32_precision = "none"
        torch.backends.cuda.matmul.fp32_precision = "none"


@pytest.mark.parametrize("switch", SWITCHES)
def test_the_callers_switches_change_nothing_and_come_back(engine, ask, reset, switch):
    if "new name" in switch and not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this torch is older than 2.9 and has no fp32_precision switches")
    expected = pixels(engine.sample(ask()))
    SWITCHES[switch]()
    before = readings()
    assert pixels(engine.sample(ask())) == expected
    assert readings() == before
    with pytest.raises(Stop):
        engine.sample(ask(), on_step=stop)
    assert readings() == before
    torch.manual_seed(3)
    engine.unload()
    before = readings()
    assert pixels(engine.sample(ask())) == expected  # loading included
    assert readings() == before


def stop(_):
    raise Stop


@pytest.mark.parametrize(
    "around",
    [
        torch.inference_mode,
        torch.no_grad,
        torch.enable_grad,
        lambda: torch.autocast("cpu", torch.bfloat16),
    ],
    ids=["inference mode", "no grad", "grad", "autocast"],
)
def test_inside_the_callers_own_mode(ask, lora, fresh, around):
    requests = [
        ask(),
        ask(adapters=((lora(), 1.0),)),
        ask(adapters=((lora(), 1.0),), mode="live"),
        ask(denoise=0.5, latents=torch.ones(1, 4, 8, 8)),
        ask(),
    ]
    expected = [fresh(request) for request in requests]
    with around():
        engine = Engine("cpu")
        assert [pixels(engine.sample(request)) for request in requests] == expected
        engine.sample(requests[1])
        engine.model(requests[0].recipe)  # takes the adapter off
    assert pixels(engine.sample(requests[0])) == expected[0]


@pytest.mark.parametrize("engines", [1, 2])
def test_two_threads_at_once(ask, lora, fresh, engines):
    """Generators belong to the process, so two engines must wait for each other as well."""
    requests = [ask(steps=4, seed=3), ask(steps=4, seed=4, adapters=((lora(), 1.0),))]
    expected = [fresh(request) for request in requests]
    shared = [Engine("cpu") for _ in range(engines)]
    drawn: dict[int, list[str]] = {0: [], 1: []}

    def work(index: int) -> None:
        for _ in range(4):
            drawn[index].append(pixels(shared[index % engines].sample(requests[index])))

    threads = [threading.Thread(target=work, args=(index,)) for index in drawn]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drawn == {0: [expected[0]] * 4, 1: [expected[1]] * 4}


# --- refused before anything is loaded -------------------------------------------------------


def test_bad_requests_are_refused_before_weights_are_read(ask, lora, tmp_path):
    engine = Engine("cpu")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    bad = [
        (ask("sd3"), UnknownModelError),
        (ask(prompt="x --w none"), InvalidInputError),
        (ask(sampler="none"), InvalidInputError),
        (ask(adapters=((tmp_path / "bad.safetensors", 1.0),)), AdapterError),
        (ask(adapters=((tmp_path / "none.safetensors", 1.0),)), AdapterError),
        (ask("flux", adapters=((lora("sd15"), 1.0),)), AdapterError),
        (ask(latents=torch.zeros(1, 16, 8, 8)), InvalidInputError),
    ]
    for request, error in bad:
        with pytest.raises(error):
            engine.sample(request)
    assert engine.loads == 0


def test_an_empty_prompt_is_allowed(engine, ask):
    for model in ("sd15", "sdxl", "flux"):
        assert engine.sample(ask(model, prompt="")).frames.any()


def test_long_and_odd_prompts_are_allowed(engine, ask):
    for prompt in ("cat " * 2000, "\x00\ud7ff\U0010ffff", "<|endoftext|>", "\n"):
        for model in ("sd15", "flux"):
            assert np.isfinite(engine.sample(ask(model, prompt=prompt)).frames).all()
