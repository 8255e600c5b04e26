"""Calls of S3: their clients, limits, arguments and errors."""
