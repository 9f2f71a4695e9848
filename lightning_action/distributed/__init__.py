"""Training on many devices, from outside: the networks know nothing of it."""
