"""Files with passwords and keys, read when they are needed."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CredentialError


def credential(path: str) -> str:
    """Where the file of a setting that ends in ``_file`` is; "" for an empty path."""
    return str(Path(os.environ.get("CREDENTIALS_DIRECTORY", ""), path)) if path else ""


def secret(path: str) -> str:
    """The content of a secret's file without its final line break; "" for an empty path. Raises ``CredentialError``."""
    full = credential(path)
    try:
        return Path(full).read_text(encoding="utf-8").rstrip("\r\n") if full else ""
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialError(
            f"{full}: {error.strerror if isinstance(error, OSError) else error}",
            "The file must exist and be readable by this user. A relative path counts from $CREDENTIALS_DIRECTORY, or from"
            " the folder of the configuration.",
        ) from error
