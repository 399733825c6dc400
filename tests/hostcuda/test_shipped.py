"""Do the shipped weights label photographs through the CUDA kernels as they do through Numba's?

Whole networks take some seconds a face on a CPU that plays a GPU: ICNN_HOSTCUDA_FACES=N asks for N faces.
"""

import os

import numpy as np
import pytest
import standin

from icnn.data.folder import SmithFolder, find_helen
from icnn.model.pipeline import load_pipeline
from icnn.model.weights import SHIPPED

pytestmark = pytest.mark.slow

COUNT = int(os.environ.get("ICNN_HOSTCUDA_FACES", 0))


@pytest.mark.usefixtures("device")
def test_faces_are_labelled_alike(monkeypatch):
    if not COUNT:
        pytest.skip("takes some seconds a face: set ICNN_HOSTCUDA_FACES to their number")
    folder = find_helen()
    if folder is None:
        pytest.skip("the project's Helen photographs are not here")
    monkeypatch.setattr(standin, "CHECKED", False)
    data = SmithFolder(folder)
    images = [data.load(name).image for name in data.names("tuning")[:COUNT]]
    labels = {}
    for backend in ("numba", "cupy"):
        pipeline = load_pipeline(SHIPPED, backend, COUNT)
        labels[backend] = np.stack(pipeline.parse(images))
    assert labels["numba"].any()
    assert np.mean(labels["cupy"] != labels["numba"]) <= 1e-4
