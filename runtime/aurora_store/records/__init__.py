"""The records of one speculator by kind: who writes them, and how each is read and checked."""
