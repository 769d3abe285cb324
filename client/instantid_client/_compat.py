"""Names that Python 3.10 does not have yet."""

import sys

if sys.version_info >= (3, 11):
    from typing import Required, Self, Unpack
else:
    from typing_extensions import Required, Self, Unpack

__all__ = ["Required", "Self", "Unpack"]
