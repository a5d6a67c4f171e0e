"""ComfyUI nodes: tensors and widgets to requests and back, nothing else."""

from . import _routes
from .job import AIToolkitCompareSamples, AIToolkitRenderSamples, LoadAIToolkitJob
from .latent import AIToolkitDecode, AIToolkitEmptyLatent, AIToolkitEncode
from .lora import ApplyAIToolkitLoRA
from .model import LoadAIToolkitModel
from .sample import AIToolkitSample
from .video import SaveVideo

NODE_CLASS_MAPPINGS = {
    "LoadAIToolkitModel": LoadAIToolkitModel,
    "ApplyAIToolkitLoRA": ApplyAIToolkitLoRA,
    "AIToolkitSample": AIToolkitSample,
    "AIToolkitSaveVideo": SaveVideo,
    "AIToolkitEmptyLatent": AIToolkitEmptyLatent,
    "AIToolkitEncode": AIToolkitEncode,
    "AIToolkitDecode": AIToolkitDecode,
    "LoadAIToolkitJob": LoadAIToolkitJob,
    "AIToolkitRenderSamples": AIToolkitRenderSamples,
    "AIToolkitCompareSamples": AIToolkitCompareSamples,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LoadAIToolkitModel": "Load AI Toolkit Model",
    "ApplyAIToolkitLoRA": "Apply AI Toolkit LoRA",
    "AIToolkitSample": "AI Toolkit Sample",
    "AIToolkitSaveVideo": "AI Toolkit Save Video",
    "AIToolkitEmptyLatent": "AI Toolkit Empty Latent",
    "AIToolkitEncode": "AI Toolkit Encode",
    "AIToolkitDecode": "AI Toolkit Decode",
    "LoadAIToolkitJob": "Load AI Toolkit Job",
    "AIToolkitRenderSamples": "AI Toolkit Render Samples",
    "AIToolkitCompareSamples": "AI Toolkit Compare Samples",
}

_routes.register()
