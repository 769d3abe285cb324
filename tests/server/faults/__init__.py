"""Models that fail in ways that would hang a caller; each stands in for one of the repository's `model.py` files."""
