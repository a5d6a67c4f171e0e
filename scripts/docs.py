"""Writes what is generated of the documentation: tables of README and server page, model pages.

And web/exactness.json, what the editor's page says of a model.

    python scripts/docs.py [--check]

--check only says what is stale.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

from model_pages import PAGES, RESULTS, exactness, pages
from server_page import tables

from ai_toolkit_inference import list_models

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
SERVER = ROOT / "docs" / "server.md"
BADGES = ROOT / "web" / "exactness.json"


def models_table() -> str:
    """One line a model, from its spec."""
    lines = ["| model | id | size | steps | guidance | repository |", "|---|---|---|---|---|---|"]
    for spec in list_models():
        defaults = spec.defaults
        lines.append(
            f"| [{spec.title}](docs/models/{spec.id}.md) | `{spec.id}` "
            f"| {defaults.width}x{defaults.height} | {defaults.steps} "
            f"| {defaults.guidance_scale:g} | {spec.repo_id} |"
        )
    return "\n".join(lines)


def exactness_table() -> str:
    """One line a model: exact pictures of all, per trainer version, over all library lines."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    lines = set()
    for key, entry in results.items():
        model, _, profile, device, libraries = key.split(" ", 4)
        total = counts[model, f"trainer {profile}, {device}"]
        total[0] += entry["exact"]
        total[1] += entry["pictures"]
        total[2] = max(total[2], entry["most"])
        lines.add(libraries)
    columns = sorted({column for _, column in counts}, key=_version)
    head = ["| model | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    rows = []
    for model in sorted({model for model, _ in counts}):
        cells = [_exactness(counts.get((model, column))) for column in columns]
        rows.append(f"| `{model}` | " + " | ".join(cells) + " |")
    tested = "; ".join(sorted(lines))
    return "\n".join(
        [*head, *rows, "", f"Measured with: {tested}; each model's page says with which."]
    )


def badges() -> str:
    """JSON: model id -> exact pictures, pictures, and the most levels that one is off."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    counts: dict[str, dict[str, int]] = {}
    for key, entry in sorted(results.items()):
        total = counts.setdefault(key.split(" ")[0], {"exact": 0, "pictures": 0, "most": 0})
        total["exact"] += entry["exact"]
        total["pictures"] += entry["pictures"]
        total["most"] = max(total["most"], entry["most"])
    lines = (f"  {json.dumps(model)}: {json.dumps(counts[model])}" for model in sorted(counts))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _exactness(counted: list[int] | None) -> str:
    return exactness(*counted) if counted else "not there yet"


def _version(column: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", column)]


def generate(page: Path, parts: dict[str, str]) -> str:
    """The page with its generated parts renewed."""
    text = page.read_text(encoding="utf-8")
    for name, content in parts.items():
        pattern = rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, new=content: f"{m[1]}{new}\n{m[2]}", text, flags=re.DOTALL)
    return text


def main() -> int:
    contents = dict(pages(list_models()))
    parts = {"models": models_table(), "exactness": exactness_table()}
    contents |= {README: generate(README, parts), SERVER: generate(SERVER, tables())}
    contents[BADGES] = badges()
    stale = [path for path, text in contents.items() if _read(path) != text]
    gone = sorted(set(PAGES.glob("*.md")) - set(contents))
    if "--check" in sys.argv:
        for path in (*stale, *gone):
            sys.stdout.write(f"{path.relative_to(ROOT)} is stale; run python scripts/docs.py\n")
        return int(bool(stale or gone))
    for path in stale:
        path.write_text(contents[path], encoding="utf-8")
    for path in gone:
        path.unlink()
    return 0


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
