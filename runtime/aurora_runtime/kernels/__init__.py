"""A Triton kernel of the trainer, beside its torch reference. It is off until a GPU has timed it."""
