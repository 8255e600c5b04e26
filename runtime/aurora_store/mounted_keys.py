"""The store's keys in a mounted Secret, read anew for each request, so that rotated keys need no restart.

Why not boto3's own file of credentials: boto3 reads it once, when it creates a client.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from botocore.credentials import CredentialProvider, Credentials, ReadOnlyCredentials

from aurora_protocol.pod_settings import ACCESS_KEY, SECRET_KEY, STORE_KEYS_VARIABLE
from aurora_store.errors import CredentialsMissing

READ_ATTEMPTS: Final = 3


class MountedKeys(Credentials):
    """The keys in the folder of a mounted Secret. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        super().__init__("", "", method=MountedKeysProvider.METHOD)
        self._folder = folder
        self._last: ReadOnlyCredentials | None = None

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """The keys to sign one request with. Without readable keys, those of the last request.

        A Secret that is deleted may take its files with it, and its keys may be valid all the same.

        Raises :class:`CredentialsMissing` when there have never been keys.
        """
        for _ in range(READ_ATTEMPTS):
            try:
                access, secret = self._read()
            except (OSError, UnicodeDecodeError):
                continue  # Kubernetes has put other files in their place
            if access and secret:
                self._last = ReadOnlyCredentials(access, secret, None, None)
            break
        if self._last is None:
            raise CredentialsMissing(f"the mounted Secret lacks {ACCESS_KEY} or {SECRET_KEY}; create or complete it")
        return self._last

    def _read(self) -> tuple[str, str]:
        """Both keys of one version of the Secret: Kubernetes replaces all files at once, by the symlink ``..data``."""
        version = Path(os.path.realpath(self._folder / "..data"))
        folder = version if version.is_dir() else self._folder
        access, secret = ((folder / name).read_text().strip() for name in (ACCESS_KEY, SECRET_KEY))
        return access, secret


class MountedKeysProvider(CredentialProvider):
    """botocore's first place to look for credentials: the folder that the environment names, if it names one."""

    METHOD = "aurora-mounted-secret"

    def load(self) -> Credentials | None:
        folder = os.environ.get(STORE_KEYS_VARIABLE)
        return MountedKeys(Path(folder)) if folder else None
