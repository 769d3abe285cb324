"""InstantID in miniature: drawn people, the networks that learn from them, and their weights. See README.md here."""

SIZE = 128
"""Side of its pictures in pixels."""
