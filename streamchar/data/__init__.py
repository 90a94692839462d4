"""Speech, faces and sentences to train on and to evaluate with; the engine never imports it."""
