"""The engines under measurement, and the client that loads them with prompts."""
