"""Training data made from nothing but a seed: sentences, speech and a drawn character."""
