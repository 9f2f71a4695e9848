"""Meaning of actions: schema, alignment to latent frames, projection to modulation."""
