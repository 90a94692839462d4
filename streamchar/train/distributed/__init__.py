"""Training in several processes: batches split by rank, weights sharded with FSDP2."""
