"""Does a GPU do what can only be seen on one: graphs, streams, long trainings, arrays beyond 32 bits?"""

import numpy as np
import pytest
from checks import Lesson, extent, is_simulated, largest_difference, same_bits, trained
from kernel_cases import CASES, run_case

from minicnn.kernels import get_backend

GIB = 1 << 30


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernel_case(case):
    """The cases by which the kernels are proven on a CPU."""
    run_case(case)


def test_a_captured_step_gives_the_same_bits_as_an_eager_one():
    size = extent().kinds[0][1]
    assert same_bits(*(trained(5, 9, min(size, 32), 3, captured) for captured in (True, False)))


def test_a_training_has_numbas_curve():
    """Of 200 steps on a GPU."""
    lesson = Lesson.of(*extent().curve)
    ours = lesson.curve("cupy")
    assert is_simulated() or ours[-1] < ours[0] / 4
    assert largest_difference(ours, lesson.curve("numba")) < 1e-3


def test_indices_beyond_32_bits():
    """2.2e9 elements: the last image lies behind 2^31 of them, and behind 2^32 bytes."""
    kernels, shape = get_backend("cupy"), (33, 1024, 256, 256)
    needed = 2 * 4 * int(np.prod(shape, dtype=object))
    if kernels.memory_left() < needed + GIB:
        pytest.skip(f"{needed / GIB:.1f} GiB of free memory are needed")
    x, y = kernels.zeros(shape, "float32"), kernels.empty(shape, "float32")
    x[-1] = 0.5
    kernels.tanh_forward(y, x)
    for image, expected in ((0, 0.0), (31, 0.0), (32, np.tanh(0.5))):
        np.testing.assert_allclose(kernels.download(y[image]), expected, rtol=0, atol=1e-6)
