"""Checks an installed wheel from outside the repository: contents, every module, `aitk`.

Usage: <python of the venv the wheel is installed in> scripts/check_wheel.py WHEEL
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "ai_toolkit_inference"


def main(wheel: str) -> None:
    check_contents(zipfile.ZipFile(wheel).namelist())
    modules = import_everything()
    version = run_aitk("--version")
    models = run_aitk("models")
    sys.stdout.write(f"{Path(wheel).name}: {modules} modules, {version}\n{models}\n")


def check_contents(files: list[str]) -> None:
    """The wheel holds the Python files of the listed packages, the tiny job, and nothing else."""
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = re.findall(r'^    "(ai_toolkit_inference[\w.]*)",$', settings, re.MULTILINE)
    expected = {
        f"{package.replace('.', '/')}/{path.name}"
        for package in packages
        for path in (ROOT / Path(*package.split(".")[1:])).glob("*.py")
    }
    expected |= {f"{PACKAGE}/{file.relative_to(ROOT).as_posix()}" for file in job_files()}
    found = {name for name in files if ".dist-info/" not in name}
    if found != expected:
        sys.exit(f"missing in the wheel: {expected - found}; too many: {found - expected}")


def job_files() -> list[Path]:
    return [file for file in (ROOT / "jobs" / "tiny_job").rglob("*") if file.is_file()]


def import_everything() -> int:
    """The number of modules imported, all of them from this interpreter's own folder."""
    package = importlib.import_module(PACKAGE)
    if not str(package.__file__).startswith(sys.prefix):
        sys.exit(f"not the installed wheel: {package.__file__}")
    names = [
        module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    return len(names)


def run_aitk(*arguments: str) -> str:
    command = [str(Path(sys.prefix, "bin", "aitk")), *arguments]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        sys.exit(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


if __name__ == "__main__":
    main(sys.argv[1])
