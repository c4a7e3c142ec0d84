"""Admission control, and what the container allows."""
