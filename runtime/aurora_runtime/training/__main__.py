"""``python -m aurora_runtime.training``."""

from aurora_runtime.training.main import main

main()
