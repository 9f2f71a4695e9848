"""Metrics over episodes: formulas on tensors, with the statistics and the readers of videos that they need."""
