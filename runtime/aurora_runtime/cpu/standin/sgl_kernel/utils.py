"""Empty on purpose: SGLang imports this submodule by name on a CPU and uses nothing from it."""
