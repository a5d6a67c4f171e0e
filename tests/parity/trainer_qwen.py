"""Let the trainer edit pictures with toy checkpoints of Qwen-Image-Edit.

Used by `trainer_small.py`, inside the trainer's interpreter; imports nothing of this package.
"""

import functools
import importlib
import json
from pathlib import Path

PIPELINES = "diffusers.pipelines.qwenimage"
PLUS = "extensions_built_in.diffusion_models.qwen_image.qwen_image_pipelines"
CLASSES = {
    f"{PIPELINES}.pipeline_qwenimage_edit": "QwenImageEditPipeline",
    PLUS: "QwenImageEditPlusCustomPipeline",
}


def reference_small() -> None:
    """Give the VAE control images of the area that the checkpoint's processor asks for.

    Only toy ones ask, as `reference_pixels`; a megapixel otherwise. All else is resized as ever.
    """
    for name, class_name in CLASSES.items():
        module = importlib.import_module(name)
        _limit(module, getattr(module, class_name))


def _limit(module, pipeline) -> None:
    sides, build = module.calculate_dimensions, pipeline.__init__
    most = {}

    @functools.wraps(build)  # diffusers reads its arguments
    def noted(self, *args, **kwargs):
        build(self, *args, **kwargs)
        checkpoint = Path(self.processor.tokenizer.name_or_path)
        file = checkpoint / "processor" / "preprocessor_config.json"
        config = json.loads(file.read_text())
        most["pixels"] = config.get("reference_pixels", 1024 * 1024)

    def limited(area, ratio):
        return sides(min(area, most["pixels"]), ratio)

    pipeline.__init__ = noted
    module.calculate_dimensions = limited
