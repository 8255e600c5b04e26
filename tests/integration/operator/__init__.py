"""The operator against a real API server and a real store."""
