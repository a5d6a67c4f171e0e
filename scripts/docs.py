"""Writes the generated parts of the README: the table of models and the table of exactness.

python scripts/docs.py [--check]
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

from ai_toolkit_inference import list_models

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "tests" / "goldens" / "results.json"


def models_table() -> str:
    """One line a model, from its spec."""
    lines = ["| model | id | size | steps | guidance | repository |", "|---|---|---|---|---|---|"]
    for spec in list_models():
        defaults = spec.defaults
        lines.append(
            f"| {spec.title} | `{spec.id}` | {defaults.width}x{defaults.height} | {defaults.steps} "
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
        cells = [_cell(*counts[model, column]) for column in columns]
        rows.append(f"| `{model}` | " + " | ".join(cells) + " |")
    tested = "; ".join(sorted(lines))
    return "\n".join([*head, *rows, "", f"Each with: {tested}."])


def _cell(exact: int, pictures: int, most: int) -> str:
    if exact == pictures:
        return f"exact ({exact} of {pictures})"
    return f"{exact} of {pictures} exact, others up to {most} levels"


def _version(column: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", column)]


def generate(text: str) -> str:
    """The README with its generated parts renewed."""
    for name, content in (("models", models_table()), ("exactness", exactness_table())):
        pattern = rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)"
        text = re.sub(pattern, lambda m, new=content: f"{m[1]}{new}\n{m[2]}", text, flags=re.DOTALL)
    return text


def main() -> int:
    old = README.read_text(encoding="utf-8")
    new = generate(old)
    if "--check" in sys.argv:
        sys.stdout.write("" if new == old else "README.md is stale; run python scripts/docs.py\n")
        return int(new != old)
    README.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
