"""Builds ``kubectl aurora`` as one file with all its dependencies, and what krew needs to install it."""
