"""Metrics for action following and video quality."""
