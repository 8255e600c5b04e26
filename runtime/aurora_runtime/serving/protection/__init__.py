"""Hooks in SGLang's HTTP process that protect the engine, its keys and its measurements from clients."""
