"""What a person sees: texts and tables from plain values. Pure, apart from ``printing``, which writes to the terminal.

Invariant: a text from the cluster or the store reaches the terminal without control characters and never as markup.
"""
