"""Files of the repository that follow from others: ``python -m tests.generated [--check]`` writes or checks them.

The CRD and its page follow from the models, and ``python -m aurora_api.crd`` writes them.
"""
