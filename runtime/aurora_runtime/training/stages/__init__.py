"""The stages of the training loop, one module each."""
