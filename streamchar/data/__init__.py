"""Speech, faces and sentences for training and evaluation; the engine never imports it."""
