"""Muon, and modules with their optimizers and averaged weights."""
