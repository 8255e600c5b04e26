"""Runs in the one-file program before anything else: gives the programs that it starts the user's environment.

PyInstaller points LD_LIBRARY_PATH at the libraries of the one file. Programs that the plugin starts (``kubectl exec``,
credential helpers of a kubeconfig or of AWS) would load these instead of the system's.
"""

import os

_USERS = os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
if _USERS is None:
    os.environ.pop("LD_LIBRARY_PATH", None)
else:
    os.environ["LD_LIBRARY_PATH"] = _USERS
