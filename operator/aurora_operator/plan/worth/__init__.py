"""Compares the cost of training with the saving of the draft, and decides whether ``training.suspendWhen`` applies."""
