"""Training checkpoints: a run goes on from one as if it had never stopped."""
