"""InstantID in miniature: drawn people, the networks that learn from them, and their weights. See README.md here."""

import numpy as np
import numpy.typing as npt

SIZE = 128
"""Side of its pictures in pixels."""
UNSEEN = 90_000
"""People from this number on are strangers: no training uses them."""
ImageArray = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
