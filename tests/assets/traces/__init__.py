"""Traces of real requests for tests and benches, with and without a draft, and readers of their verify rounds."""
