"""An inference pod: stock SGLang with our capture plugin, and the agent beside it.

Invariants: serving never waits for capture, the store or the agent. Records that capture cannot process in time are
dropped and counted. No prompt, token or secret reaches a log.
"""
