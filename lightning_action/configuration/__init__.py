"""What a configuration and its paths may name."""
