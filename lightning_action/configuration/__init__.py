"""Names that a configuration and its paths may hold."""
