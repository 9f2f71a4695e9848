"""Reports: figures, verdict and comparison, and how they are written and drawn."""
