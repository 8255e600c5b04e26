"""Stock SGLang as a process and as an HTTP API: start a server, ask it, load another draft into it.

Invariant: this package knows neither Kubernetes nor the store. It imports neither sglang nor torch, except in
``weight_loader`` and ``vocabulary_plugin``, which SGLang itself imports inside its scheduler.
"""
