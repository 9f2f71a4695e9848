"""A live session in the browser: the server, its page, the map from keys to actions, and recordings."""
