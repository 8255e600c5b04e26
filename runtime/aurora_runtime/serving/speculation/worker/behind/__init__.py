"""Rounds that the host launches without the results of the round before: on a GPU, under overlap scheduling."""
