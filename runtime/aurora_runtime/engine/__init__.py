"""Stock SGLang as a process and an HTTP API, for whoever starts or serves one: launch, ask, swap a draft.

Invariant: knows neither Kubernetes nor the store; imports neither sglang nor torch, but for `loader` and `vocabulary`,
which SGLang itself imports inside its scheduler.
"""

from typing import Final

SGLANG_VERSION: Final = "0.5.23"
"""The SGLang that this runtime knows from inside."""
