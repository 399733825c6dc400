"""Photographs and labels: read, resampled, augmented, written, drawn."""
