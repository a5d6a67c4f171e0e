"""The engine over HTTP: an API with a queue, OpenAI's Images API, LoRA administration."""
