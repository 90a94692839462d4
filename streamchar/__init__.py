"""Text goes in, a character speaks it: voice and picture generated together, chunk by chunk, in real time."""

__version__ = "0.1.0"
