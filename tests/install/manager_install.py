"""Installs a pack into ComfyUI with ComfyUI-Manager's own code; run by the Python of that ComfyUI.

    manager_install.py TREE BASE ZIP_URL NAME VERSION

Only the registry's answer is made up: where the zip file of that version is.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import os
import sys


def main() -> int:
    tree, base, url, name, version = sys.argv[1:]
    sys.argv = ["main.py", "--base-directory", base, "--cpu"]
    sys.path.insert(0, tree)  # where main.py has it; a PYTHONPATH would reach pip as well
    os.environ["COMFYUI_PATH"] = tree

    import comfy.options

    comfy.options.enable_args_parsing()

    import utils.extra_config  # noqa: F401  # as main.py: comfy/utils.py must not come first
    from comfyui_manager import prestartup_script  # noqa: F401  # its lists of what it never installs
    from comfyui_manager.common import cnr_utils
    from comfyui_manager.glob import manager_core

    answer = {"id": name, "version": version, "downloadUrl": url}
    cnr_utils.install_node = lambda *_: cnr_utils.map_node_version(answer)
    result = manager_core.unified_manager.cnr_install(name, version, instant_execution=True)
    sys.stdout.write(f"{result.msg or 'installed'}\n")
    return int(not result.result)


if __name__ == "__main__":
    sys.exit(main())
