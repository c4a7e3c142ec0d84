"""Admission control and the container's limits."""
