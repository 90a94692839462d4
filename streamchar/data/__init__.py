"""Training data: a drawn character and how it moves with speech. An extra; the engine imports none of it."""
