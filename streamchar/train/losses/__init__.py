"""The losses of the training stages, and the discriminators that two of them use."""
