"""Mutated objects in a store, and every reader of the runtime."""
