"""Networks that generate the latents of a chunk: the transformer, its KV cache and the orchestrator."""
