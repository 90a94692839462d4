"""Text on its way into the model: normalisation, tokenizers, the transcript window and the text feed."""
