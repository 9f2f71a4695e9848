"""What the callbacks share."""
