"""Tests of whether a model obeys."""
