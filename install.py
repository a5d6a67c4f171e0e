"""What is left to do after `pip install -r requirements.txt`; ComfyUI-Manager runs it by itself.

* diffusers is installed when it is missing, in the newest version that leaves every other package
  as it is (except safetensors, which diffusers needs at 0.8 or newer).
* ostris/ai-toolkit is fetched at one pinned commit into vendor/ai-toolkit, for the models that need
  the trainer's own network code.

AI_TOOLKIT_REPO: another address or folder to fetch the trainer from.
AI_TOOLKIT_PATH: an existing checkout at the pinned commit; nothing is fetched then.
Exit status: 0 when the pack can render, 1 when something must be mended first. A trainer that could
not be fetched is a warning: only the models that need its code are missing then.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

DIFFUSERS = "diffusers>=0.39,<0.43"
DIFFUSERS_MINORS = range(39, 43)  # of 0.x
MAY_BE_UPGRADED = {
    "safetensors"
}  # its file format and functions are stable; no pack pins it from above

TRAINER_COMMIT = "27a03a91f23eb1b757d5ec2e80ee3e129cfcc350"
TRAINER_REPO = "https://github.com/ostris/ai-toolkit.git"
VENDOR = Path(__file__).resolve().parent / "vendor" / "ai-toolkit"

PEP_440 = re.compile(r"(\d+!)?\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[a-z0-9.]+)?")


class InstallProblem(Exception):
    """A step that could not be done: what is wrong and what to do."""


class TrainerMissing(InstallProblem):
    """The trainer's code could not be fetched; everything else works."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Installs diffusers and the trainer's source code."
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    dry_run = parser.parse_args(arguments).dry_run
    status = 0
    for step in (install_diffusers, vendor_trainer):
        try:
            step(dry_run)
        except TrainerMissing as problem:
            sys.stderr.write(f"ai-toolkit-inference: warning: {problem}\n")
        except InstallProblem as problem:
            sys.stderr.write(f"ai-toolkit-inference: error: {problem}\n")
            status = 1
    return status


def install_diffusers(dry_run: bool = False) -> None:
    """Installs diffusers when it is missing; an installed one is never touched."""
    try:
        installed = importlib.metadata.version("diffusers")
    except importlib.metadata.PackageNotFoundError:
        _pip_install(DIFFUSERS, dry_run)
    else:
        _check_diffusers(installed)


def _check_diffusers(installed: str) -> None:
    release = re.match(r"0\.(\d+)", installed)
    if not release or int(release[1]) not in DIFFUSERS_MINORS:
        raise InstallProblem(
            f"diffusers {installed} is installed, allowed is {DIFFUSERS}. It was left alone, since "
            f"other packs may need it. To change it: {_command('-m', 'pip', 'install', DIFFUSERS)}"
        )


def _pip_install(requirement: str, dry_run: bool) -> None:
    _say(f"installing {requirement} beside the packages that are there")
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "constraints.txt")
        constraints.write_text("\n".join(installed_pins()) + "\n", encoding="utf-8")
        command = [*_installer(), "--constraint", str(constraints), requirement]
        code = subprocess.run([*command, "--dry-run"] if dry_run else command).returncode
    if code:
        raise InstallProblem(
            f"{requirement} could not be installed without changing another package (the reason is "
            "above). Nothing was changed. Without diffusers the nodes load but cannot render. Run "
            f"`{_command(str(Path(__file__).resolve()))}` again once the reason is gone."
        )


def installed_pins() -> list[str]:
    """`name==version` of every installed package that has to stay as it is."""
    versions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if name and name not in MAY_BE_UPGRADED and PEP_440.fullmatch(distribution.version or ""):
            versions.setdefault(
                name, distribution.version
            )  # the first on the path is the one in use
    return sorted(f"{name}=={version}" for name, version in versions.items())


def _installer() -> list[str]:
    if importlib.util.find_spec("pip"):
        # ComfyUI's portable build runs with -s; without it pip would count the user's own packages.
        flags = ["-s"] if sys.flags.no_user_site else []
        return [sys.executable, *flags, "-m", "pip", "install", "--disable-pip-version-check"]
    uv = shutil.which("uv")
    if uv:
        return [uv, "pip", "install", "--python", sys.executable]
    raise InstallProblem(
        f"{sys.executable} has no pip and there is no uv, so diffusers cannot be installed. "
        f"Install pip (`{_command('-m', 'ensurepip')}`) and run this file again."
    )


def _command(*arguments: str) -> str:
    # as one types it; core/missing.py tells the same, but this file stands alone
    words = (sys.executable, *arguments)
    if sys.platform != "win32":
        return shlex.join(words)
    return " ".join(word if re.fullmatch(r"[\w.:\\/+=-]+", word) else f'"{word}"' for word in words)


def vendor_trainer(dry_run: bool = False) -> None:
    """Puts the trainer at its pinned commit into VENDOR, unless it is there already."""
    if not shutil.which("git"):
        raise TrainerMissing(
            f"git was not found, so the trainer's code in {VENDOR} could not be fetched or "
            "checked. Models that need none of it work. Install git and run this file again."
        )
    given = os.environ.get("AI_TOOLKIT_PATH")
    if given:
        _check_given(Path(given))
    elif not VENDOR.exists():
        _fetch_trainer(dry_run)
    else:
        _check_vendored(dry_run)


def _check_given(checkout: Path) -> None:
    found = _commit(checkout) if (checkout / ".git").exists() else "no git checkout"
    if found != TRAINER_COMMIT:
        raise InstallProblem(
            f"AI_TOOLKIT_PATH={checkout} holds {found}, expected is ostris/ai-toolkit at "
            f"{TRAINER_COMMIT}. Check that commit out there, or unset AI_TOOLKIT_PATH to fetch it."
        )
    _refuse_changes(checkout)


def _check_vendored(dry_run: bool) -> None:
    """Accepts VENDOR at the pinned commit; another commit, from an older pack, is replaced."""
    if not (VENDOR / ".git").exists():
        raise InstallProblem(f"{VENDOR} is not a git checkout. Delete it and run this file again.")
    _refuse_changes(VENDOR)
    if _commit(VENDOR) != TRAINER_COMMIT:
        _fetch_trainer(dry_run)


def _refuse_changes(checkout: Path) -> None:
    changes = _git(checkout, "status", "--porcelain").splitlines()
    if changes:
        raise InstallProblem(
            f"{checkout} has {len(changes)} changed files ({changes[0].strip()} ...), but is the "
            "reference for exactness. Undo the changes, or delete it and run this file again."
        )


def _fetch_trainer(dry_run: bool) -> None:
    """Works in a folder beside VENDOR and renames it at the end, so VENDOR is whole or absent."""
    source = os.environ.get("AI_TOOLKIT_REPO") or TRAINER_REPO
    _say(f"fetching the trainer's code, {TRAINER_COMMIT[:8]} of {source}, into {VENDOR}")
    if dry_run:
        return
    partial = VENDOR.with_name(f"{VENDOR.name}.partial")
    if VENDOR.exists() and not partial.exists():
        VENDOR.rename(partial)
    partial.mkdir(parents=True, exist_ok=True)
    for lock in (partial / ".git").glob("*.lock"):  # of a run that was interrupted
        lock.unlink()
    _run_git("init", "--quiet", str(partial))
    if not _has_commit(partial):
        _git(partial, "fetch", "--quiet", "--depth=1", "--no-tags", source, TRAINER_COMMIT)
    _git(partial, "checkout", "--quiet", "--force", "--detach", TRAINER_COMMIT)
    _refuse_changes(partial)
    if VENDOR.exists():
        raise InstallProblem(
            f"{VENDOR} and {partial} both exist. Delete both and run this file again."
        )
    partial.rename(VENDOR)


def _has_commit(checkout: Path) -> bool:
    return (
        _call_git(*_at(checkout), "cat-file", "-e", f"{TRAINER_COMMIT}^{{commit}}").returncode == 0
    )


def _commit(checkout: Path) -> str:
    return _git(checkout, "rev-parse", "HEAD").strip()


def _git(checkout: Path, *arguments: str) -> str:
    return _run_git(*_at(checkout), *arguments)


def _at(checkout: Path) -> tuple[str, ...]:
    # Named outright: in a broken checkout git would find the pack's own repository, further up.
    return ("--git-dir", str(checkout / ".git"), "--work-tree", str(checkout))


def _run_git(*arguments: str) -> str:
    done = _call_git(*arguments)
    if done.returncode:
        reason = done.stderr.strip() or f"exit status {done.returncode}"
        raise TrainerMissing(
            f"the trainer's code is not in place, git said: {reason}\n"
            "Models that need none of it work. With network, run this file again; without, set "
            "AI_TOOLKIT_REPO to a copy of the repository or AI_TOOLKIT_PATH to a checkout of "
            f"{TRAINER_COMMIT}."
        )
    return done.stdout


def _call_git(*arguments: str) -> subprocess.CompletedProcess[str]:
    settings = {
        "core.autocrlf": "false",  # the files as committed, also on Windows
        "core.longpaths": "true",
        "http.lowSpeedLimit": "1000",  # bytes/s; a stalled fetch must not hang ComfyUI-Manager
        "http.lowSpeedTime": "60",  # s
    }
    flags = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    for name in (
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
    ):  # set when git itself runs this, in a hook
        environment.pop(name, None)
    command = ["git", *flags, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def _say(message: str) -> None:
    sys.stdout.write(f"ai-toolkit-inference: {message}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
