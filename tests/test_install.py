"""install.py against real git repositories and real pip, without network."""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
import zipfile
from pathlib import Path

import pytest

from ai_toolkit_inference import install

# Versions and requirements as on PyPI.
WHEELS = {
    "diffusers-0.39.0": ["huggingface-hub<2.0,>=0.34.0", "safetensors>=0.8.0"],
    "diffusers-0.42.1": ["huggingface-hub<3.0,>=1.32.0", "safetensors>=0.8.0"],
    "diffusers-0.43.0": ["huggingface-hub<3.0,>=1.32.0", "safetensors>=0.8.0"],
    "huggingface_hub-0.36.2": [],
    "huggingface_hub-2.4.0": [],
    "safetensors-0.8.0": [],
}
TRANSFORMERS_4 = ["transformers-4.57.6", "huggingface_hub-0.36.2", "safetensors-0.4.5"]
FILES = ("METADATA", "RECORD", "WHEEL")
INSTALL_DIFFUSERS = """
import sys, install
try:
    install.install_diffusers()
except install.InstallProblem as problem:
    sys.exit(str(problem))
"""
TRANSFORMERS_5 = ["transformers-5.12.1", "huggingface_hub-2.4.0", "safetensors-0.8.0"]


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder: Path, text: str) -> str:
    (folder / "version.py").write_text(text)
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", text)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """A bare repository in place of the trainer's; the pinned commit is not its newest."""
    work, bare = tmp_path / "work", tmp_path / "trainer.git"
    work.mkdir()
    git(work, "init", "--quiet")
    commit(work, "old")
    pinned = commit(work, "pinned")
    commit(work, "new")
    git(tmp_path, "clone", "--quiet", "--bare", str(work), str(bare))
    monkeypatch.setattr(install, "TRAINER_COMMIT", pinned)
    monkeypatch.setattr(install, "VENDOR", tmp_path / "pack" / "vendor" / "ai-toolkit")
    # main() must not install anything into the environment of the tests.
    monkeypatch.setattr(install, "install_diffusers", lambda dry_run: None)
    monkeypatch.setenv("AI_TOOLKIT_REPO", str(bare))
    monkeypatch.delenv("AI_TOOLKIT_PATH", raising=False)
    return bare


def vendored() -> str:
    return (install.VENDOR / "version.py").read_text()


def test_the_pinned_commit_is_fetched_alone(trainer):
    install.vendor_trainer()
    assert vendored() == "pinned"
    assert git(install.VENDOR, "rev-list", "--count", "HEAD") == "1"
    assert [path.name for path in install.VENDOR.parent.iterdir()] == ["ai-toolkit"]


def test_a_second_run_is_quiet_and_needs_no_source(trainer, monkeypatch, capsys):
    install.vendor_trainer()
    capsys.readouterr()
    monkeypatch.setenv("AI_TOOLKIT_REPO", "/no/such/repository")
    assert install.main([]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_dry_run_fetches_nothing(trainer, capsys):
    install.vendor_trainer(dry_run=True)
    assert "fetching" in capsys.readouterr().out
    assert not install.VENDOR.exists()


def test_an_interrupted_fetch_is_resumed(trainer):
    partial = install.VENDOR.with_name("ai-toolkit.partial")
    partial.mkdir(parents=True)
    git(partial, "init", "--quiet")
    (partial / ".git" / "index.lock").touch()
    (partial / "version.py").write_text("half a fi")
    install.vendor_trainer()
    assert vendored() == "pinned"


def test_an_interrupted_checkout_is_resumed_without_the_source(trainer, monkeypatch):
    install.vendor_trainer()
    install.VENDOR.rename(install.VENDOR.with_name("ai-toolkit.partial"))
    monkeypatch.setenv("AI_TOOLKIT_REPO", "/no/such/repository")
    install.vendor_trainer()
    assert vendored() == "pinned"


def test_an_older_pin_is_replaced(trainer, monkeypatch):
    install.vendor_trainer()
    monkeypatch.setattr(install, "TRAINER_COMMIT", git(trainer, "rev-parse", "HEAD"))
    install.vendor_trainer()
    assert vendored() == "new"


def test_changed_files_are_refused(trainer, capsys):
    install.vendor_trainer()
    (install.VENDOR / "version.py").write_text("changed")
    assert install.main([]) == 1
    assert "version.py" in capsys.readouterr().err
    assert vendored() == "changed"


def test_a_folder_that_is_no_checkout_is_refused(trainer, capsys):
    install.VENDOR.mkdir(parents=True)
    git(install.VENDOR.parent.parent, "init", "--quiet")  # a clone of the pack around it
    assert install.main([]) == 1
    assert "not a git checkout" in capsys.readouterr().err


def test_an_unreachable_source_is_a_warning_that_says_what_to_do(trainer, monkeypatch, capsys):
    monkeypatch.setenv("AI_TOOLKIT_REPO", "/no/such/repository")
    assert install.main([]) == 0
    message = capsys.readouterr().err
    assert "/no/such/repository" in message
    assert "AI_TOOLKIT_PATH" in message
    assert not install.VENDOR.exists()


def test_a_commit_that_the_source_lacks_is_a_warning(trainer, monkeypatch, capsys):
    monkeypatch.setattr(install, "TRAINER_COMMIT", "0" * 39 + "1")
    assert install.main([]) == 0
    assert "not our ref" in capsys.readouterr().err
    assert not install.VENDOR.exists()


def test_without_git_it_explains_itself(trainer, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert install.main([]) == 0
    assert "Install git" in capsys.readouterr().err


def test_a_given_checkout_is_used(trainer, monkeypatch):
    checkout = trainer.parent / "mine"
    git(trainer.parent, "clone", "--quiet", str(trainer), str(checkout))
    git(checkout, "checkout", "--quiet", install.TRAINER_COMMIT)
    monkeypatch.setenv("AI_TOOLKIT_PATH", str(checkout))
    assert install.main([]) == 0
    assert not install.VENDOR.exists()


def test_a_given_checkout_at_another_commit_is_refused(trainer, monkeypatch, capsys):
    checkout = trainer.parent / "mine"
    git(trainer.parent, "clone", "--quiet", str(trainer), str(checkout))
    monkeypatch.setenv("AI_TOOLKIT_PATH", str(checkout))
    assert install.main([]) == 1
    assert git(checkout, "rev-parse", "HEAD") in capsys.readouterr().err


@pytest.mark.parametrize("version", ["0.38.1", "0.43.0", "1.0.0"])
def test_a_diffusers_out_of_range_is_reported_and_left_alone(version):
    with pytest.raises(install.InstallProblem, match=version):
        install._check_diffusers(version)


@pytest.mark.parametrize("version", ["0.39.0", "0.42.1", "0.40.0.dev0"])
def test_a_diffusers_in_range_is_accepted(version):
    install._check_diffusers(version)


def write_metadata(folder: Path, name: str, requires: list[str]) -> None:
    info = folder / f"{name}.dist-info"
    info.mkdir(parents=True)
    project, version = name.rsplit("-", 1)
    head = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n"
    (info / "METADATA").write_text(head + "".join(f"Requires-Dist: {line}\n" for line in requires))
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    (info / "RECORD").write_text("".join(f"{info.name}/{file},,\n" for file in FILES))


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    """A folder of empty wheels with the requirements of the real ones."""
    folder = tmp_path_factory.mktemp("index")
    for name, requires in WHEELS.items():
        source = tmp_path_factory.mktemp("wheel")
        write_metadata(source, name, requires)
        with zipfile.ZipFile(folder / f"{name}-py3-none-any.whl", "w") as wheel:
            for file in source.rglob("*-*/*"):
                wheel.write(file, file.relative_to(source))
    return folder


def run_install(tmp_path: Path, index: Path, installed: list[str]) -> tuple[int, str, list[str]]:
    """Exit status, output, and what is installed after install.py ran in a new environment."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True, symlinks=True)
    python = environment / "bin" / "python"
    site = next((environment / "lib").glob("python*/site-packages"))
    for name in installed:
        write_metadata(site, name, ["huggingface-hub<1.0"] if "transformers-4" in name else [])
    settings = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PIP_")},
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
    }
    shutil.copy(install.__file__, tmp_path)
    command = [python, "-c", INSTALL_DIFFUSERS]
    done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True)
    after = [path.name.removesuffix(".dist-info") for path in site.glob("*.dist-info")]
    own = ("pip-", "setuptools-")
    return (
        done.returncode,
        done.stdout + done.stderr,
        [name for name in after if not name.startswith(own)],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("installed", "added"),
    [
        (TRANSFORMERS_4, {"diffusers-0.39.0", "safetensors-0.8.0"}),
        (TRANSFORMERS_5, {"diffusers-0.42.1"}),
        ([*TRANSFORMERS_5, "diffusers-0.42.1"], set()),
    ],
    ids=["transformers 4", "transformers 5", "diffusers there"],
)
def test_diffusers_is_chosen_so_that_nothing_else_changes(tmp_path, index, installed, added):
    code, output, after = run_install(tmp_path, index, installed)
    assert code == 0, output
    replaced = {"safetensors-0.4.5"} if "safetensors-0.8.0" in added else set()
    assert set(after) == set(installed) - replaced | added
    assert bool(output) == bool(added)


@pytest.mark.slow
def test_diffusers_that_does_not_fit_is_not_installed(tmp_path, index):
    installed = ["transformers-4.40.0", "huggingface_hub-0.20.0", "safetensors-0.4.5"]
    code, output, after = run_install(tmp_path, index, installed)
    assert code != 0
    assert "Nothing was changed" in output
    assert sorted(after) == sorted(installed)
