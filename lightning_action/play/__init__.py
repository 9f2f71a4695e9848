"""Generated worlds to act in: for people in a browser, for policies, and for planners."""
