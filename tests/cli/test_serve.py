"""`aitk serve` as its users start it: a process of its own, with flags and variables."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ai_toolkit_inference.cli import serve as module
from ai_toolkit_inference.cli.main import build_parser, main

pytest.importorskip("fastapi", reason="the server's packages are not installed (extra `server`)")

LINE = r"listening at (http://\S+), docs at (http://\S+/docs)\n"
SMALL = {"width": 64, "height": 64, "sample_steps": 1}
LONG = SMALL | {"sample_steps": 900}
COMMAND = [sys.executable, "-m", "ai_toolkit_inference.cli", "serve"]
FLAGS = ["--port", "0", "--weights", "tiny", "--device", "cpu"]


class Serving:
    """A started `aitk serve`. line: what it said then."""

    def __init__(self, folder: Path, *flags: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *FLAGS, *flags],
            cwd=folder,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        said = re.fullmatch(LINE, self.line)
        assert said, (self.line, self.process.communicate(timeout=10))
        self.url, self.docs = said.groups()

    def ask(self, path: str, body: Any = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def send(self, **prompt: Any) -> str:
        body = {"model": "sd15", "prompts": [SMALL | prompt], "output_format": "png"}
        return self.ask("/v1/inference", body)["request_id"]

    def wait(self, id: str, *until: str) -> dict[str, Any]:
        until = until or ("succeeded", "failed", "canceled")
        deadline = time.monotonic() + 60
        while (said := self.ask(f"/v1/requests/{id}/result"))["status"] not in until:
            assert time.monotonic() < deadline, said
            time.sleep(0.02)
        return said

    def end(self, sent: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
        """(exit status, the rest of stdout, stderr)"""
        self.process.send_signal(sent)
        stdout, stderr = self.process.communicate(timeout=60)
        return self.process.returncode, stdout, stderr


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    started: list[Serving] = []

    def serving(*flags: str, **variables: str) -> Serving:
        started.append(Serving(tmp_path, *flags, **variables))
        return started[-1]

    yield serving
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch) -> Callable[..., str]:
    """The one line that aitk serve says when it does not start."""

    def refused(*flags: str) -> str:
        monkeypatch.chdir(tmp_path)
        assert main(["serve", *FLAGS, *flags]) == 2
        stdout, stderr = capsys.readouterr()
        assert (stdout, stderr.count("\n")) == ("", 1)
        return stderr

    return refused


STOPPED = "stopped; requests that wait are drawn after the next start\n"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_it_draws_and_stops_within_a_step(serving, tmp_path, sent) -> None:
    server = serving("--lora-folder", str(tmp_path))
    with urllib.request.urlopen(server.docs, timeout=10) as page:
        assert page.status == 200
    done = server.wait(server.send())
    assert Path(done["outputs"][0]["file_path"]).parent == tmp_path / "output"
    server.wait(server.send(**LONG), "in_progress")
    asked = time.monotonic()
    assert server.end(sent)[:2] == (0, STOPPED)
    assert time.monotonic() - asked < 20


def test_a_killed_server_goes_on_where_it_was(serving, tmp_path) -> None:
    first = serving()
    drawn, waits = first.send(**LONG), first.send(seed=1)
    first.wait(drawn, "in_progress")
    first.end(signal.SIGKILL)
    second = serving()
    result = second.wait(drawn)
    assert (result["status"], result["error"]["code"]) == ("failed", "server_restarted")
    assert second.wait(waits)["status"] == "succeeded"
    with pytest.raises(AssertionError, match="another server works with the output folder"):
        serving()


def test_it_warns_of_what_it_should(serving) -> None:
    server = serving(HOST="0.0.0.0", PORT="1", DEBUG="no")
    assert re.fullmatch(
        r"listening at http://0\.0\.0\.0:(\d+), .*//127\.0\.0\.1:\1/docs\n", server.line
    )
    assert server.ask("/health")["status"] == "healthy"
    status, _, stderr = server.end()
    assert status == 0
    assert "aitk: warning: anybody who reaches 0.0.0.0 can draw" in stderr
    assert "aitk: warning: there is no folder loras" in stderr


@pytest.mark.parametrize(
    ("host", "keys", "said"),
    [
        ("127.0.0.1", False, False),
        ("::1", False, False),
        ("localhost", False, False),
        ("0.0.0.0", False, True),
        ("0.0.0.0", True, False),
        ("192.168.1.2", False, True),
        ("example.org", False, True),
    ],
)
def test_who_is_warned(tmp_path, host, keys, said) -> None:
    from ai_toolkit_inference.server.settings import Settings

    texts = {"host": host, "lora_folder": str(tmp_path)}
    texts |= {"api_key_file": "keys"} if keys else {}
    assert bool(module.warnings(Settings().with_texts(texts))) == said


def test_a_port_in_use(refused) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert f"cannot listen at 127.0.0.1 port {port}: Address already in use" in refused(
            "--port", str(port)
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--port", "x"), r"port \(PORT\) is 'x'; it has to be a whole number"),
        (("--host", "256.1.1.1"), "cannot listen at 256.1.1.1 port 0"),
        (("--device", "cuda:99"), "there is no device cuda:99"),
        (("--device", "tpu"), "unknown device 'tpu'"),
        (("--api-key-file", "none"), "the key file none cannot be read"),
        (("--model", "sd16"), "unknown model 'sd16'"),
        (("--weights", "none"), "there are no weights 'none'"),
        (("--output-folder", "/dev/null"), "cannot be used"),
    ],
)
def test_what_keeps_it_from_starting(tmp_path, capsys, monkeypatch, flags, message) -> None:
    monkeypatch.chdir(tmp_path)
    status = main(["serve", *FLAGS, *flags])
    stdout, stderr = capsys.readouterr()
    assert (status, stdout, stderr.count("\n")) == (1 if "/dev/null" in flags else 2, "", 1)
    assert re.match(f"aitk: .*{message}", stderr), stderr


def test_the_cache_is_set_before_the_hub_is_imported(refused, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", "before")
    refused("--model-cache", "hub", "--host", "256.1.1.1")
    assert os.environ["HF_HUB_CACHE"] == str(tmp_path / "hub")
    code = "import sys, ai_toolkit_inference.cli.main; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_missing_packages_are_named_with_the_command(capsys, monkeypatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("fastapi", "no-such-package"))
    assert main(["serve"]) == 1
    stderr = capsys.readouterr().err
    assert "the server needs no-such-package; run `" in stderr
    assert "-m pip install 'ai-toolkit-inference[server]'`" in stderr


def test_packages_are_those_of_the_extra() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    extra = re.search(r"^server = \[(.*)\]$", project, re.MULTILINE)
    assert extra and tuple(re.findall(r'"([a-z-]+)>', extra[1])) == module.PACKAGES


def test_every_setting_has_a_flag_and_no_flag_takes_a_key(capsys) -> None:
    from ai_toolkit_inference.server.settings import SETTINGS

    with pytest.raises(SystemExit):
        build_parser().parse_args(["serve", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for setting in SETTINGS:
        assert f"{setting.flag} " in said or f"{setting.flag}, " in said
        assert f"({setting.env}" in said
    for flag in ("--api-key", "--api-key-fil", "--json"):
        with pytest.raises(SystemExit) as exit:
            build_parser().parse_args(["serve", flag, "secret"])
        assert exit.value.code == 2
