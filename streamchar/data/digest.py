"""A short hash of file contents."""

import hashlib
from pathlib import Path


def digest(*files: Path) -> str:
    """Return the first 16 hexadecimal digits of a SHA-256 over the contents of files, in order."""
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            whole.update(hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()[:16]
