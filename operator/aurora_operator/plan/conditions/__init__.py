"""What the conditions of a speculator say: the messages, and which condition Ready repeats. Pure."""
