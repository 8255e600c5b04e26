"""The content of a speculator's conditions: their messages, and which condition Ready repeats. Pure."""
