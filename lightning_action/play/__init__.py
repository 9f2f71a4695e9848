"""Generated worlds to act in: for people, for policies, and for planners."""
