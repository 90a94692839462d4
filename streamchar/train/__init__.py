"""Training of every part of the system; the engine never imports it."""
