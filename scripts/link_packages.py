"""Gives another environment packages of this one, with all that they require: linked, not copied.

    python scripts/link_packages.py VENV NAME_OR_REQUIREMENTS_FILE...

So an environment with torch costs neither a download nor room on the disk. What VENV has already
stays as it is.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

ASK_FOR_SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"


def link_packages(venv: Path, names: Iterable[str]) -> list[str]:
    """Links the named packages and what they require; the names of those that VENV had not."""
    site = site_packages(venv)
    present = {_normal(found.metadata["Name"]) for found in distributions(path=[str(site)])}
    new = {name: found for name, found in closure(names).items() if name not in present}
    for found in new.values():
        _link(found, site)
    return sorted(new)


def site_packages(venv: Path) -> Path:
    """The folder in which an environment keeps its packages."""
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    command = [str(python), "-c", ASK_FOR_SITE]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def closure(names: Iterable[str]) -> dict[str, Distribution]:
    """The named packages and all that they require; PackageNotFoundError if one is not here."""
    found: dict[str, Distribution] = {}
    pending = [_normal(name) for name in names]
    while pending:
        name = pending.pop()
        if name not in found:
            found[name] = distribution(name)
            pending += _required(found[name].requires or [])
    return found


def _required(requirements: Iterable[str]) -> Iterator[str]:
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _normal(requirement.name)


def link(source: str, target: str) -> None:
    """One file in two places; a copy where the file system cannot do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _link(found: Distribution, site: Path) -> None:
    for file in found.files or []:
        target = site / file
        if ".." in file.parts or target.exists():  # commands: their first line names this one
            continue
        source = Path(str(found.locate_file(file)))
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            link(str(source), str(target))


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_names(argument: str) -> list[str]:
    """The packages that a requirements file names, or the one name."""
    if not argument.endswith(".txt"):
        return [argument]
    lines = Path(argument).read_text(encoding="utf-8").splitlines()
    return [Requirement(line).name for line in lines if line and not line.startswith(("#", "-"))]


def main() -> int:
    venv, *arguments = sys.argv[1:]
    names = [name for argument in arguments for name in read_names(argument)]
    linked = link_packages(Path(venv), names)
    sys.stdout.write(f"{len(linked)} packages linked into {venv}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
