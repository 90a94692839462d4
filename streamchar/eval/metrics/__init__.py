"""Measures on sound, picture and words, for any source."""
