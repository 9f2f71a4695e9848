"""Generation without a Trainer: from a run, or from released weights."""
