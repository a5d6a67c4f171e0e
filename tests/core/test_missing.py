"""Commands that messages tell people to type."""

from __future__ import annotations

import shlex
import sys

import pytest

from ai_toolkit_inference import install
from ai_toolkit_inference.core import missing

tellers = pytest.mark.parametrize("tell", [missing._command, install._command])


@tellers
def test_a_shell_reads_the_words_that_were_meant(tell, monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/my $tools/python")
    told = tell("-m", "pip", "install", missing.DIFFUSERS)
    assert shlex.split(told)[0] == "/opt/my $tools/python"
    assert shlex.split(told)[-4:] == ["-m", "pip", "install", missing.DIFFUSERS]


@tellers
def test_cmd_redirects_nothing(tell, monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(sys, "executable", r"C:\ComfyUI portable\python_embeded\python.exe")
    told = tell("-m", "pip", "install", missing.DIFFUSERS).replace(" -s ", " ")
    python = r'"C:\ComfyUI portable\python_embeded\python.exe"'
    assert told == f'{python} -m pip install "{missing.DIFFUSERS}"'


@tellers
def test_plain_words_stay_as_they_are(tell) -> None:
    for platform in ("linux", "win32"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "platform", platform)
            patch.setattr(
                sys,
                "executable",
                r"C:\Python312\python.exe" if platform == "win32" else "/usr/bin/python3",
            )
            assert tell("-m", "ensurepip").replace(" -s ", " ") == f"{sys.executable} -m ensurepip"
