"""Plain data of the engine: requests, results, specs, versions, errors. No torch."""
