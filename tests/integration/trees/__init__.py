"""Drafts that propose trees, which is not the default shape, on real SGLang."""
