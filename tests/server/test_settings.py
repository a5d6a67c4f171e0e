"""Settings: one table for the environment, the flags and the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from ai_toolkit_inference.core.errors import InvalidInputError
from ai_toolkit_inference.server.settings import SETTINGS, Settings, read_settings


def test_nothing_given_is_what_is_usual() -> None:
    assert read_settings({}) == Settings() == Settings().with_texts({"port": ""})


def test_the_environment_gives_every_kind() -> None:
    given = {
        "HOST": "::1",
        "PORT": "9000",
        "ENABLE_CPU_OFFLOAD": "Yes",
        "DEBUG": "off",
        "AITK_WEIGHTS_PATH": "~/weights",
        "AITK_PORT": "1",  # not ours
    }
    settings = read_settings(given)
    assert (settings.host, settings.port, settings.debug) == ("::1", 9000, False)
    assert settings.weights_folder == Path.home() / "weights"
    assert settings.how_offloaded == "model"
    assert read_settings(given | {"AITK_OFFLOAD": "none"}).how_offloaded == "none"


def test_flags_win_over_the_environment() -> None:
    settings = read_settings({"PORT": "1", "DEBUG": "true"}, {"port": "2", "debug": "False"})
    assert (settings.port, settings.debug) == (2, False)
    assert read_settings({"PORT": "1"}, {"port": ""}).port == Settings().port


def test_flags_are_read_before_a_bad_variable() -> None:
    assert read_settings({"PORT": "x"}, {"port": "2"}).port == 2


@pytest.mark.parametrize(
    ("env", "text", "message"),
    [
        ("PORT", "x", r"port \(PORT\) is 'x'; it has to be a whole number"),
        ("PORT", "-1", "whole number"),
        ("PORT", "1.5", "whole number"),
        ("PORT", "٣", "whole number"),
        ("PORT", "65536", "port is 65536; allowed: 0 to 65535"),
        ("INFERENCE_TIMEOUT", "0", "timeout is 0; allowed: 1 to"),
        ("AITK_MAX_QUEUE", "9" * 5000, "whole number"),
        ("DEBUG", "maybe", r"debug \(DEBUG\) is 'maybe'; allowed: true or false"),
        ("AITK_OFFLOAD", "disk", "offload is 'disk'; allowed: auto, none"),
    ],
)
def test_what_cannot_be_is_refused(env: str, text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        read_settings({env: text})


def test_every_setting_is_named_once_and_none_holds_a_secret() -> None:
    assert len({one.env for one in SETTINGS}) == len(SETTINGS)
    secrets = [one for one in SETTINGS if "key" in one.name or "token" in one.name]
    assert secrets and all(one.kind is Path for one in secrets)
