"""``python -m aurora_cli`` runs the same program as ``kubectl-aurora``."""

from aurora_cli.main import main

main()
