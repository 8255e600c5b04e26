"""The trainer on traces of a real engine and a real S3 server."""
