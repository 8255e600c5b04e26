"""Triton kernels of trainer and capture: each beside a torch reference, and off until a GPU has timed it."""
