"""Prompts, flags and sizes are read as the trainer reads them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ai_toolkit_inference import get_model, list_models
from ai_toolkit_inference.core.errors import InvalidInputError
from ai_toolkit_inference.core.prompts import FLAGS, replace_trigger, resolve
from ai_toolkit_inference.core.versions import get_profile

SD15, SDXL, FLUX = (get_model(name) for name in ("sd15", "sdxl", "flux"))
GIVEN = {
    "--n bad hands": ("negative_prompt", "bad hands"),
    "--w 128": ("width", 128),
    "--h 128": ("height", 128),
    "--d 7": ("seed", 7),
    "--seed 7": ("seed", 7),
    "--l 3.5": ("guidance_scale", 3.5),
    "--cfg 3.5": ("guidance_scale", 3.5),
    "--s 3": ("steps", 3),
    "--steps 3": ("steps", 3),
    "--m 0.5": ("multiplier", 0.5),
    "--network_multiplier -1": ("multiplier", -1.0),
    "--gr 0.7": ("guidance_rescale", 0.7),
    "--frames 9": ("num_frames", 9),
    "--num_frames 9": ("num_frames", 9),
    "--fps 24": ("fps", 24),
    "--ctrl_idx 1": ("control_index", 1),
}


@pytest.fixture
def settings(ask):
    """settings("a cat --w 128", spec, field=...) as resolved."""
    return lambda prompt, spec=SD15, **fields: resolve(spec, ask(spec.id, prompt=prompt, **fields))


@pytest.mark.parametrize("text", GIVEN)
def test_a_flag_sets_its_field_and_wins_over_the_request(settings, text):
    name, value = GIVEN[text]
    plain = settings("a cat", seed=1, steps=9, guidance_scale=2.0, negative_prompt="dull")
    found = settings(f"a cat {text}", seed=1, steps=9, guidance_scale=2.0, negative_prompt="dull")
    assert getattr(found, name) == value != getattr(plain, name)
    changed = {key for key, old in vars(plain).items() if vars(found)[key] != old}
    assert changed == {name}


def test_every_flag_is_tested():
    assert {text.split()[0][2:] for text in GIVEN} == set(FLAGS)


@pytest.mark.parametrize(
    "tail",
    [
        "--p2 other --n2 worse",  # read by the trainer and then overwritten
        "--a 0.5 --ref 0.8 --ev 1,2 --extra_values 3 --ctrl_img x.png",
        "--unknown 3",
        "--W 128",
        "--w128",
        "--w\t128",  # a flag ends at a space, at nothing else
        "--",
        "-- and then a dog",
        "----",
    ],
)
def test_what_is_no_flag_is_dropped(settings, tail):
    assert settings(f"a cat {tail}") == settings("a cat")


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("  a cat  ", "a cat"),
        ("a well--known cat", "a well"),
        ("a cat--w 128", "a cat"),
        ("--w 128", ""),
        ("--w 128 a cat --n b", None),
        ("", ""),
        ("a - b \u2014 c -n d", "a - b \u2014 c -n d"),
        ("line one\nline two --w 128", "line one\nline two"),
    ],
)
def test_the_first_two_dashes_end_the_text(settings, prompt, text):
    if text is None:
        with pytest.raises(InvalidInputError, match="128 a cat"):
            settings(prompt)
    else:
        found = settings(prompt)
        assert (found.prompt, found.prompt_2) == (text, text)


def test_the_last_of_repeated_flags_counts(settings):
    found = settings("a cat --w 72 --seed 3 --w 128 --d 4 --n ugly -- gone --n  dull, low quality ")
    assert (found.width, found.seed, found.negative_prompt) == (128, 4, "dull, low quality")


@pytest.mark.parametrize("text", ["+7", "0_7", "007", "\uff17", "  7  "])
def test_whole_numbers_are_read_as_python_reads_them(settings, text):
    assert settings(f"a cat --seed {text}").seed == 7


@pytest.mark.parametrize("value", ["", "abc", "1.5", "1e2", "0x10", "12 34", "None", "9" * 5000])
@pytest.mark.parametrize("flag", ["w", "seed", "steps", "fps"])
def test_a_bad_whole_number_names_the_flag(settings, flag, value):
    with pytest.raises(InvalidInputError, match=f"--{flag} got .*whole number"):
        settings(f"a cat --{flag} {value}")


@pytest.mark.parametrize("value", ["", "strong", "1,5", "1.5 --w x"])
def test_a_bad_number_names_the_flag(settings, value):
    with pytest.raises(InvalidInputError, match=r"--(m|w) got"):
        settings(f"a cat --m {value}")


@pytest.mark.parametrize("flag", ["cfg", "l", "m", "gr"])
@pytest.mark.parametrize("value", ["nan", "inf", "-Infinity", "1e999"])
def test_numbers_have_to_be_finite(settings, flag, value):
    with pytest.raises(InvalidInputError, match="finite"):
        settings(f"a cat --{flag} {value}")


@pytest.mark.parametrize(
    ("flag", "good", "bad"),
    [
        ("w", (1, 16384), (0, -8, 16385, 10**30)),
        ("h", (1, 16384), (0, -8, 16385, 10**30)),
        ("s", (1, 999), (0, -1, 10001, 10**30)),
        ("seed", (0, 2**64 - 1), (-1, 2**64)),
        ("frames", (1, 10_000), (0, -1, 10_001)),
        ("fps", (1, 1000), (0, -1, 1001)),
    ],
)
def test_ranges_of_flags(settings, flag, good, bad):
    for value in good:
        settings(f"a cat --{flag} {value}")
    for value in bad:
        with pytest.raises(InvalidInputError, match=f"={value} .*must be"):
            settings(f"a cat --{flag} {value}")


def test_an_inline_guidance_of_minus_one_is_meant(settings):
    assert settings("a cat --cfg -1").guidance_scale == -1.0
    assert settings("a cat", guidance_scale=-1.0).guidance_scale == SD15.defaults.guidance_scale


# --- trigger words and negatives -------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "word", "expected"),
    [
        ("[trigger] in [name], [trigger]", "sks dog", "sks dog in sks dog, sks dog"),
        ("a [trigger] and [Trigger]", "sks", "a sks and [Trigger]"),
        ("a [trigger]", "", "a [trigger]"),
        ("a cat", "sks", "a cat"),
        ("a [trigger]", r"\1 $0 [", r"a \1 $0 ["),
    ],
)
def test_trigger_words(prompt, word, expected):
    assert replace_trigger(prompt, word) == expected


def test_the_trigger_word_is_put_in_before_flags_are_read(settings):
    found = settings("a [trigger]", trigger_word="sks --w 128")
    assert (found.prompt, found.width) == ("a sks", 128)


def test_the_trigger_word_stays_out_of_the_negative_field(settings):
    found = settings("a [trigger] --seed 3", trigger_word="sks", negative_prompt="[trigger]")
    assert (found.prompt, found.negative_prompt) == ("a sks", "[trigger]")
    assert settings("a --n [name]", trigger_word="sks").negative_prompt == "sks"


def test_an_inline_negative_does_not_reach_the_second_encoder(settings):
    found = settings("a cat --n ugly", SDXL, negative_prompt="dull")
    assert (found.negative_prompt, found.negative_prompt_2) == ("ugly", "dull")


# --- sizes and defaults ----------------------------------------------------------------------


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize(
    ("asked", "sd15", "flux"),
    [
        (1, 64, 64),
        (63, 64, 64),
        (65, 64, 64),
        (71, 64, 64),
        (72, 72, 64),
        (79, 72, 64),
        (80, 80, 80),
        (127, 120, 112),
        (128, 128, 128),
        (1000, 1000, 992),
        (1023, 1016, 1008),
        (16384, 16384, 16384),
    ],
)
def test_sides_are_floored_to_8_lifted_to_64_floored_to_the_grid(
    settings, asked, sd15, flux, inline
):
    for spec, expected in ((SD15, sd15), (FLUX, flux)):
        if inline:
            found = settings(f"a cat --w {asked} --h {asked}", spec)
        else:
            found = settings("a cat", spec, width=asked, height=asked)
        assert (found.width, found.height) == (expected, expected)


@pytest.mark.parametrize("spec", list_models(), ids=lambda spec: spec.id)
def test_what_is_left_open_is_the_models_default(settings, spec):
    found = settings("a cat", spec, width=0, height=0, steps=0, num_frames=0)
    for name, value in vars(spec.defaults).items():
        assert getattr(found, name) == value
    assert found.multiplier is None  # each adapter keeps its own
    given = settings("a cat", spec, guidance_scale=0.0)
    assert given.guidance_scale == 0.0


@pytest.mark.parametrize("spec", list_models(), ids=lambda spec: spec.id)
def test_every_default_can_be_rendered(spec):
    assert spec.defaults.sampler in spec.samplers
    assert spec.defaults.width % spec.multiple_of == spec.defaults.height % spec.multiple_of == 0


@pytest.mark.parametrize(
    ("spec", "sampler"), [(SD15, "Euler"), (SD15, "dpmsolver"), (FLUX, "ddpm"), (FLUX, "unipc")]
)
def test_an_unknown_sampler_is_refused_with_the_list(settings, spec, sampler):
    with pytest.raises(InvalidInputError, match=sampler) as refusal:
        settings("a cat", spec, sampler=sampler)
    assert all(name in str(refusal.value) for name in spec.samplers)


def test_control_images_are_refused_where_none_are_taken(settings):
    with pytest.raises(InvalidInputError, match="takes no control images, got 2"):
        settings("a cat", control_images=(object(), object()))


@pytest.mark.parametrize(
    ("spec", "sampler", "most"),
    [
        (SD15, "lcm", 50),
        (SDXL, "custom_lcm", 50),
        (SD15, "ddpm", 999),
        (SD15, "pndm", 999),
        (SDXL, "ddpm", 1000),
        (SD15, "heun", 1000),
    ],
)
def test_a_sampler_takes_only_so_many_steps(settings, spec, sampler, most):
    assert settings("a cat", spec, sampler=sampler, steps=most).steps == most
    for prompt, steps in (("a cat", most + 1), (f"a cat --steps {most + 1}", 1)):
        with pytest.raises(InvalidInputError, match=f"at most {most}"):
            settings(prompt, spec, sampler=sampler, steps=steps)


@pytest.mark.parametrize(
    ("version", "prompt"), [("0.7.19", "a [trigger] [name]"), ("0.12.26", "a sks sks")]
)
def test_cached_text_once_kept_its_trigger_words(ask, version, prompt):
    request = ask("sd15", prompt="a [trigger] [name]", trigger_word="sks", cached_text=True)
    assert resolve(SD15, request, get_profile(version)).prompt == prompt
    plain = replace(request, cached_text=False)
    assert resolve(SD15, plain, get_profile(version)).prompt == "a sks sks"


def test_an_inline_negative_reaches_the_second_encoder_in_cached_text(settings):
    found = settings("a cat --n ugly", SDXL, negative_prompt="dull", cached_text=True)
    assert (found.negative_prompt, found.negative_prompt_2) == ("ugly", "ugly")
    found = settings("a cat", SDXL, negative_prompt="dull", cached_text=True)
    assert (found.negative_prompt, found.negative_prompt_2) == ("dull", "dull")
