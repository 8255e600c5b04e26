"""The contract: what users write, and what Aurora's parts say to each other.

Everything that crosses a process boundary (custom resource, store records, agent HTTP bodies) is a model in this
package, so that one side cannot drift from the other. It imports neither torch nor kubernetes: every part, including
the light ones, can afford to depend on it.
"""

GROUP = "aurora.dev"
VERSION = "v1alpha1"
KIND = "AuroraSpeculator"
PLURAL = "auroraspeculators"
API_VERSION = f"{GROUP}/{VERSION}"
