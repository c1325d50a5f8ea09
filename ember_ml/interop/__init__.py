"""Readers of the original projects' checkpoints, one file a project."""
