"""What ai-toolkit makes of single layers that it quantizes: digests of weights and outputs.

    $AI_TOOLKIT_PYTHON trainer_quantized.py QTYPES.json OUT.json

Run by the trainer's interpreter; imports nothing of this package. Environment: as trainer_run.py.
OUT.json: {"version", "results": {"qtype/dtype": "layer:weight:output ..."}}. A layer that the
trainer leaves as it is has `plain` for its weight, one that it fails at has `failed` for both.
"""

import contextlib
import importlib
import json
import os
import sys
from pathlib import Path

import quantized_layers
import torch
import trainer_shims


def measure(qtype: str, dtype: str, name: str) -> str:
    """One entry of the results."""
    quantize = importlib.import_module("toolkit.util.quantize")
    layer, x = quantized_layers.draw_layers()[name]
    kind = quantized_layers.DTYPES[dtype]
    root = torch.nn.Sequential(layer.to(kind))
    try:
        quantize.quantize(root, weights=quantize.get_qtype(qtype))
        importlib.import_module("optimum.quanto").freeze(root)
        with torch.no_grad():
            output = root(x.to(kind))
            weight = root[0].weight
    except NotImplementedError:  # no kernel on a CPU
        return f"{name}:failed:failed"
    output_digest = quantized_layers.digest(output)
    if root[0] is layer and type(weight) is torch.nn.Parameter:
        return f"{name}:plain:{output_digest}"
    weight = weight.data.dequantize() if hasattr(weight.data, "dequantize") else weight.data
    return f"{name}:{quantized_layers.digest(weight)}:{output_digest}"


def main() -> int:
    """Exit code: 0."""
    qtypes = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    out = Path(sys.argv[2])
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        diffusers = os.environ.get("AI_TOOLKIT_DIFFUSERS")
        trainer_shims.boot(os.environ["AI_TOOLKIT_PATH"], diffusers, "cpu")
        results: dict[str, list[str]] = {}
        for qtype, dtype, name in quantized_layers.cases(qtypes):
            results.setdefault(f"{qtype}/{dtype}", []).append(measure(qtype, dtype, name))
        version = importlib.import_module("version").VERSION
    joined = {key: " ".join(entries) for key, entries in results.items()}
    out.write_text(json.dumps({"version": version, "results": joined}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
