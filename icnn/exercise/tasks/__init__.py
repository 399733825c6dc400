"""The exercises, in their order."""

from icnn.exercise.task import Exercise
from icnn.exercise.tasks import convolution, faces, layers, training

EXERCISES: tuple[Exercise, ...] = (
    *convolution.EXERCISES,
    *layers.EXERCISES,
    *training.EXERCISES,
    *faces.EXERCISES,
)
