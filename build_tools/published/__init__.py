"""The published weights: fetched, checked, converted into a set and verified. See docs/weights.md."""
