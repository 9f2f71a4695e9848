"""LightningModules: what follows actions, how it is saved, and what trains it."""
