"""Triton kernels of the trainer: each beside a torch reference, and off until a GPU has timed it."""
