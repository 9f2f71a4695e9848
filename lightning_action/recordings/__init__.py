"""Recorded videos with their actions, as files: formats, and what is cut out of them."""
