"""LoRA files: read them, bind them to a model's modules, apply them, restore the base."""
