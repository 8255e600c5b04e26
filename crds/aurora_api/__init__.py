"""The API that users write and read: the custom resource ``AuroraSpeculator``, its CRD and its reference page.

The package imports neither torch nor kubernetes. Messages between Aurora's own parts are in ``aurora_protocol``.
"""

GROUP = "aurora.dev"
VERSION = "v1alpha1"
KIND = "AuroraSpeculator"
PLURAL = "auroraspeculators"
API_VERSION = f"{GROUP}/{VERSION}"
