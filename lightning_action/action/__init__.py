"""What an action is: schema, alignment to latent frames, projection to modulation."""
