"""Stock SGLang as a process and an HTTP API, for whoever starts one: how to launch it, ask it and swap its draft.

Invariant: knows neither Kubernetes nor the store; imports neither sglang nor torch, but for `loader`, which SGLang
itself imports inside its scheduler.
"""
