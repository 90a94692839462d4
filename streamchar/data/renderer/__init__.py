"""A cartoon character whose mouth follows timed phonemes, drawn with torch."""
