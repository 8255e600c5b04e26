"""The store's keys in a mounted Secret, read anew for each request, so that rotated keys need no restart.

Why not boto3's own file of credentials: boto3 reads it once, when it creates a client.
"""

from __future__ import annotations

import os
from pathlib import Path

from botocore.credentials import CredentialProvider, Credentials, ReadOnlyCredentials

from aurora_protocol.pod_settings import ACCESS_KEY, SECRET_KEY, STORE_KEYS_VARIABLE
from aurora_store.errors import CredentialsMissing


class MountedKeys(Credentials):
    """The keys in the folder of a mounted Secret. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        super().__init__("", "")
        self._folder = folder
        self._last: ReadOnlyCredentials | None = None

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """The keys to sign one request with. Without readable keys, those of the last request.

        The files of a Secret go while Kubernetes replaces them, and with a Secret that is deleted.

        Raises :class:`CredentialsMissing` when there have never been keys.
        """
        try:
            # Kubernetes replaces all files at once, by one symlink. Both keys must be of the same version.
            version = Path(os.path.realpath(self._folder / ACCESS_KEY)).parent
            access, secret = ((version / name).read_text().strip() for name in (ACCESS_KEY, SECRET_KEY))
        except (OSError, UnicodeDecodeError):
            access = secret = ""
        if access and secret:
            self._last = ReadOnlyCredentials(access, secret, None, None)
        if self._last is None:
            raise CredentialsMissing(f"the mounted Secret lacks {ACCESS_KEY} or {SECRET_KEY}; create or complete it")
        return self._last


class MountedKeysProvider(CredentialProvider):
    """The first place where boto3 looks for credentials: the folder that the environment names, if it names one."""

    METHOD = "aurora-mounted-secret"

    def load(self) -> Credentials | None:
        folder = os.environ.get(STORE_KEYS_VARIABLE)
        return MountedKeys(Path(folder)) if folder else None
