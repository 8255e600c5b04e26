"""Informers: list and watch the API server, and keep the cache complete."""
