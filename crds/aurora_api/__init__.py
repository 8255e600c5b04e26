"""What users write and read: the custom resource ``AuroraSpeculator``, its generated CRD and its reference page.

The package imports neither torch nor kubernetes. Everything that Aurora's own parts say to each other is in
``aurora_protocol``.
"""

GROUP = "aurora.dev"
VERSION = "v1alpha1"
KIND = "AuroraSpeculator"
PLURAL = "auroraspeculators"
API_VERSION = f"{GROUP}/{VERSION}"
