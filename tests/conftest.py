"""What several test files share: the backends, examples for every kernel, a careful way to call one, and a browser."""

import os
import shutil

import numpy as np
import pytest
from examples import EXAMPLES, Caller, draw_example

BACKENDS = ("numpy", "numba")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    """Name of each backend in turn."""
    return request.param


@pytest.fixture
def call(backend) -> Caller:
    """Calls kernels of each backend in turn."""
    return Caller(backend)


@pytest.fixture
def reference() -> Caller:
    """Calls kernels of the reference backend."""
    return Caller("numpy")


@pytest.fixture
def example():
    """The function `draw_example`."""
    return draw_example


@pytest.fixture(params=list(EXAMPLES))
def kernel(request) -> str:
    """Name of each kernel in turn."""
    return request.param


@pytest.fixture(params=["float32", "float64"])
def dtype(request) -> str:
    return request.param


#: K, C, O, (H, W), N: windows odd and even, filters that fill tiles or do not, planes smaller than the window.
_CONVOLUTIONS = [
    (1, 3, 8, (3, 5), 3),
    (2, 2, 3, (8, 8), 1),
    (3, 1, 1, (1, 1), 1),
    (3, 26, 10, (13, 9), 3),
    (4, 7, 2, (3, 5), 3),
    (5, 24, 8, (16, 16), 3),
    (5, 3, 8, (64, 64), 1),
    (7, 8, 9, (13, 9), 1),
    (9, 9, 26, (8, 8), 1),
    (9, 10, 7, (64, 64), 1),
    (11, 8, 24, (3, 5), 1),
    (11, 2, 3, (16, 16), 3),
]


@pytest.fixture(params=_CONVOLUTIONS, ids=lambda case: "K{}-C{}-O{}-{}-N{}".format(*case).replace(" ", ""))
def convolution(request, rng):
    """Float64 arrays x (N, C, H, W), w (O, C, K, K), b (O,), dy (N, O, H, W) of one convolution."""
    k, c, o, plane, n = request.param
    shapes = ((n, c, *plane), (o, c, k, k), (o,), (n, o, *plane))
    return tuple(rng.standard_normal(shape) for shape in shapes)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if executable is None or sync_playwright is None:
        assert "ICNN_REQUIRE_BROWSER" not in os.environ, "expected Chromium and Playwright"
        pytest.skip("needs Chromium and Playwright")
    with sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        with driver.chromium.launch(executable_path=executable, args=flags) as chromium:
            yield chromium
