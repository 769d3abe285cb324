"""Faces: which one is meant, where it goes in the picture, and the landmark picture that says so."""
