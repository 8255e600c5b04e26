"""Capture: from SGLang's verify rounds to shards of traces in the spool."""
