"""Score single sentences: word errors, lip sync, identity and speed of every source."""
