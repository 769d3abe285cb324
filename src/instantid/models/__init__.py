"""Families of models: each answers the calls that the engine makes."""
