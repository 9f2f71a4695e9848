"""Flow matching: schedules, objectives, samplers and guidance, as functions."""
