"""Which files do published models have, and which draft follows from a target's or a head's configuration?

The trainer makes a lineage's drafts of these sizes, and a pod without a draft its placeholder.
"""
