"""Where prepared data is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$RETAIN_CACHE, or retain/ in the user's cache folder."""
    if own := os.environ.get("RETAIN_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retain"
