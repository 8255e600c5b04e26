"""Reads a speculator's objects in the store, for a person. Nothing here writes to a store."""
