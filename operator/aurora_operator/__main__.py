"""``python -m aurora_operator``."""

from aurora_operator.main import main

main()
