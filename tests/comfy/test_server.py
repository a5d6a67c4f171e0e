"""scripts/comfyui.py: what it says when a server cannot be started, found or stopped."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def test_base_with_a_running_server(comfyui: ModuleType, comfy: Any) -> None:
    assert comfyui.find_server(comfy.base) == comfy
    with pytest.raises(comfyui.ComfyUIError, match=f"runs already at {comfy.url}"):
        comfyui.start_server(comfy.base)


def test_port_in_use(comfyui: ModuleType, comfy: Any, tmp_path: Path) -> None:
    port = int(comfy.url.rsplit(":", 1)[1])
    with pytest.raises(comfyui.ComfyUIError, match=f"port {port} is not free"):
        comfyui.start_server(tmp_path, port=port)


def test_server_that_dies(comfyui: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(comfyui.ComfyUIError, match="unrecognized arguments: --nonsense"):
        comfyui.start_server(tmp_path, device="cpu", extra_args=["--nonsense"])
    assert comfyui.find_server(tmp_path) is None


def test_pack_that_does_not_import(comfyui: ModuleType, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "__init__.py").write_text("import there_is_no_such_module\n")
    with pytest.raises(comfyui.ComfyUIError, match="No module named 'there_is_no_such_module'"):
        comfyui.start_server(tmp_path / "base", pack=broken, pack_name="broken-1.0", device="cpu")


def test_folder_without_comfyui(
    comfyui: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(comfyui.ComfyUIError, match="holds no ComfyUI"):
        comfyui.find_tree()


def test_stale_state_is_no_server(comfyui: ModuleType, tmp_path: Path) -> None:
    state = comfyui.Server("http://127.0.0.1:1", 1, tmp_path / "log", tmp_path)
    (tmp_path / "server.json").write_text(state.as_json())
    assert comfyui.find_server(tmp_path) is None


def test_another_release_of_the_page(
    comfyui: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AITK_CACHE", str(tmp_path))
    monkeypatch.setenv("COMFYUI_FRONTEND", "1.2.3")
    unpacked = tmp_path / "comfyui-frontend-package-1.2.3"
    unpacked.mkdir()
    command = comfyui._command("python", tmp_path, 8188, "cpu", [])
    assert command[command.index("--front-end-root") + 1] == str(unpacked)
