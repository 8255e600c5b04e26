"""Builds ``kubectl aurora`` as one file with all its dependencies."""
