"""Trained as served: the pass that trains, and several ranks, beside real engines and processes."""
