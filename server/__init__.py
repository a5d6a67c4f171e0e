"""The engine over HTTP: a native asynchronous API, OpenAI's Images API, and adapter administration."""
