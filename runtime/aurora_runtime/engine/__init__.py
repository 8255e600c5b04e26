"""Stock SGLang as a process and an HTTP API, for whoever starts or serves one: launch, ask, swap a draft.

Invariant: knows neither Kubernetes nor the store; imports neither sglang nor torch, but for `loader`, which SGLang
itself imports inside its scheduler.
"""
