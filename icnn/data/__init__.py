"""Read, resample, augment, write and draw photographs and label maps."""
