"""Score what the engine generates, with upper and lower bounds of each score. Needs the extra ``eval``."""
