"""Text encoders and video codecs that are never trained."""
