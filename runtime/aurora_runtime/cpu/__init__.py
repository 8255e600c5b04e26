"""SGLang's CPU device made usable without a GPU and without SGLang's unpublished CPU kernels.

`engine` says how to start a server on it, `plugin` is what SGLang loads into each of its processes, the other modules
are the operations themselves in plain torch. Nothing here is imported, or does anything, when a GPU serves.
"""
