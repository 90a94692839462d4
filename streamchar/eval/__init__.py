"""Scores of what the engine makes, each beside its ceiling and its floor. Needs the extra ``eval``."""
