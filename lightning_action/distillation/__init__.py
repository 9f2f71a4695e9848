"""Few-step students of a many-step model, whose teacher and critic see the actions: losses, rollouts, modules."""
