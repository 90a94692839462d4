"""Codecs between media and latents: the streaming video VAE and the streaming vocoder."""
