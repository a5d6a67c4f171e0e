"""The networks of a trainer's job: seeded values, what was loaded, and a second one on top.

Used by `trainer_run.py`, inside the trainer's interpreter; imports nothing of this package.
"""

import importlib

FILL = {"seed": 1234, "down": 1.0, "up": 0.3}
OVER_ROOT = (".lokr_w2", ".lokr_w2_b", ".diff", ".diff_b")  # as wide as `up` over their inputs


def fill(network, seed: int, down: float, up: float) -> None:
    """Seeded normal values in every parameter.

    Up weights are `up` wide, others `down` over the root of their inputs, those of OVER_ROOT `up`
    over it. Magnitudes stray by a tenth.
    """
    torch = importlib.import_module("torch")
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith(".magnitude"):
            parameter.data.mul_(1 + noise.to(parameter.device) / 10)
            continue
        width = up if ".lora_up." in name else down / parameter[0].numel() ** 0.5
        if name.endswith(OVER_ROOT):
            width = up / parameter[0].numel() ** 0.5
        parameter.data.copy_(noise * width)


def keep_arguments() -> None:
    """Has every network remember what it was made with, as `made_with`."""
    network = importlib.import_module("toolkit.lora_special").LoRASpecialNetwork
    make = network.__init__

    def made(self, *args, **kwargs):
        make(self, *args, **kwargs)
        self.made_with = kwargs

    network.__init__ = made


def arrange(process, job: dict, target_lists) -> None:
    """What a job asks for beyond its configuration, just before it samples: see trainer_run.py."""
    network = process.network
    if network is None:
        return
    network.second = []
    if job.get("lora"):
        complete(network, job["lora"])
    if job.get("live"):
        network.can_merge_in = False  # as the trainer sets it for a quantized model
    if second := job.get("second"):
        attach(process, second, target_lists)


def attach(process, given: dict, target_lists) -> None:
    """Puts a second network around the job's own, made and loaded as the trainer makes one.

    It is merged after the first one, whenever the trainer merges that.
    """
    section, lora, multiplier = given["network"], given["lora"], given["multiplier"]
    config = importlib.import_module("toolkit.config_modules").NetworkConfig(**section)
    first, torch = process.network, importlib.import_module("torch")
    arguments = {
        name: value
        for name, value in first.made_with.items()
        if name not in process.network_config.network_kwargs
    } | {
        "lora_dim": config.linear, "alpha": config.linear_alpha, "conv_lora_dim": config.conv,
        "conv_alpha": config.conv_alpha, "network_config": config, "network_type": config.type,
    }  # fmt: skip
    target_lists.restore()
    second = type(first)(**arguments, **config.network_kwargs)
    second.force_to(process.device_torch, dtype=torch.float32)
    second._update_torch_multiplier()
    parts = (arguments["text_encoder"], arguments["unet"])
    second.apply_to(*parts, arguments["train_text_encoder"], arguments["train_unet"])
    second.load_weights(lora)
    complete(second, lora)
    second.requires_grad_(False).eval()
    second.is_active, second.multiplier, second.file = True, multiplier, lora
    merge_first = first.merge_in

    def merge_both(merge_weight=1.0):
        merge_first(merge_weight)
        second.merge_in(multiplier)

    first.merge_in = merge_both
    first.second = [second]


def complete(network, lora: str) -> None:
    """Magnitudes of a DoRA, which the trainer saves with peft names and loses when it loads."""
    given = importlib.import_module("safetensors.torch").load_file(lora)
    # many models save this prefix instead
    given = {key.replace("diffusion_model.", "transformer.", 1): v for key, v in given.items()}
    for module in network.get_all_modules():
        key = module.lora_name.replace("$$", ".") + ".magnitude"
        if hasattr(module, "magnitude"):
            module.magnitude.data.copy_(given[key])


def observe(network, lora: str | None) -> dict:
    """Facts of a network; `scale` is alpha over rank as its arithmetic uses it."""
    modules = network.get_all_modules()
    facts = {
        "modules": len(modules),
        "modules_with_effect": sum(all(p.any() for p in m.parameters()) for m in modules),
        "scale": sorted({float(getattr(module, "scale", 1.0)) for module in modules}),
        "lora_dtype": str(next(network.parameters()).dtype),
        "can_merge_in": bool(network.can_merge_in),
        "is_merged_in": bool(network.is_merged_in),
    }
    if lora:
        facts["lora_keys_not_loaded"] = not_loaded(network, lora)
    return facts


def loaded(network, lora: str) -> dict:
    """The file's tensors; of a model that splits its files, those of both."""
    model = network.base_model_ref() if network.base_model_ref is not None else None
    read = getattr(model, "load_lora", importlib.import_module("safetensors.torch").load_file)
    return read(lora)


def not_loaded(network, lora: str) -> list[str]:
    """Keys of the file that the network does not have, or has with another value."""
    given = loaded(network, lora)
    own = network.get_state_dict(dtype=next(iter(given.values())).dtype)
    # alpha is loaded into a buffer that no arithmetic reads; that of a full LoKr overflows fp16
    return sorted(
        key
        for key, value in given.items()
        if key not in own or not (key.endswith(".alpha") or value.equal(own[key]))
    )


class TargetLists:
    """Puts back what making a network changes for the next one in the same process.

    `LoRASpecialNetwork.__init__` with a conv rank appends to a list of the class it inherits from
    (`target_modules += ...`), so every later network without one would reach more layers.
    """

    def __init__(self):
        network = importlib.import_module("toolkit.kohya_lora").LoRANetwork
        lists = [value for value in vars(network).values() if isinstance(value, list)]
        self.lists = [(value, list(value)) for value in lists]

    def restore(self) -> None:
        for value, original in self.lists:
            value[:] = original
