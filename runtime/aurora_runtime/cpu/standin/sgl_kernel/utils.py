"""SGLang imports this submodule by name on a CPU and uses nothing of it."""
