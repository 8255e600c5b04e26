"""Reads objects from the API server, and sends changes there."""
