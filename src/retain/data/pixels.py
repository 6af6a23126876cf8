"""Images as sequences of pixels in raster order."""

from __future__ import annotations

import hashlib

import numpy as np

from retain.config import DataConfig
from retain.data.batches import RowsData
from retain.errors import UserError


def load_digits(config: DataConfig) -> RowsData:
    """Load 1,797 handwritten digits of 8 x 8 pixels in 17 levels, split 90 / 5 / 5 % by image.

    They are part of the package scikit-learn, so nothing is downloaded. Raises UserError if seq_len is not 63.
    """
    try:
        from sklearn import datasets  # slow to import, and only needed here
    except ImportError:
        raise UserError("data.name: digits needs scikit-learn; run pip install scikit-learn") from None
    pixels = datasets.load_digits().data.astype(np.uint8)  # (1797, 64)
    info = {"name": "digits", "levels": 17, "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}
    return RowsData(
        pixels,
        fractions=(0.9, 0.05, 0.05),
        vocab_size=17,
        seq_len=config.seq_len,
        kind="image",
        image_shape=(8, 8),
        info=info,
        what="images of {} pixels",
    )
