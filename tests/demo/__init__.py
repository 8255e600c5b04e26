"""``make demo``: the whole loop on this machine, as a show.

`start.py` prepares what needs no packages, `__main__.py` runs the loop, and `show` says how far it is. `recording`
records a run for the documents.
"""
