"""Mutated objects in a store, mutated requests to an agent, and all their readers."""
