"""Fetches, checks, converts and verifies the published weights. See docs/weights.md."""
