"""Where prepared data is kept."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """$RETAIN_CACHE, or retain/ in the user's cache folder; in that of temporary files for a user without a home."""
    if own := os.environ.get("RETAIN_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retain"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"retain-{os.getuid()}"
