"""Capture: turns SGLang's verify rounds into shards of traces in the spool."""
