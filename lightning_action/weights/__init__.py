"""Weights in and out of files: every format that checkpoints of this family come in."""
