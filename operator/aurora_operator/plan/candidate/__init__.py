"""Decides which version is measured, and what follows from its measurement. Pure."""
