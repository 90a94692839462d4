"""English sentences generated from a grammar, word lists and passages."""
