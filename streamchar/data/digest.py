"""A short name for what is in files."""

import hashlib
from pathlib import Path


def digest(*files: Path) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of what is in files, one after another."""
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            whole.update(hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()[:16]
