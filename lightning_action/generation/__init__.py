"""Generation of video from noise."""
