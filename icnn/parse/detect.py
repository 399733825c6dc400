"""Detection of any number of upright frontal faces with OpenCV's detector (extra `detect`)."""

import numpy as np

from icnn.data.face_box import Box
from icnn.errors import InputError

#: Conversion of a detector box to ours (eyebrows to chin): our length, and the downward offset of our centre, both
#: as fractions of its width. Medians over the tuning split of the project's Helen photographs; it detects 95 % of them.
_LENGTH, _BELOW = 140 / 162, 24.5 / 162
_LARGEST = 1024  # maximum side in pixels of the detector's input; larger photographs are scaled down


def detector():
    """Return a function that maps a photograph (H, W, 3) uint8 to a list of face `Box`.

    Raises
    ------
    InputError
        If OpenCV is not installed or its version lacks the detector.
    """
    try:
        import cv2

        file = cv2.data.haarcascades + "haarcascade_frontalface_default.xml"  # pyright: ignore[reportAttributeAccessIssue]: made at run time
        cascade = cv2.CascadeClassifier(file)
    except (ImportError, AttributeError):
        raise InputError(
            "--detect: expected OpenCV 4, which brings the detector, found none; try pip install 'icnn[detect]'"
        ) from None

    def detect(photograph: np.ndarray) -> list[Box]:
        grey = cv2.cvtColor(np.ascontiguousarray(photograph), cv2.COLOR_RGB2GRAY)
        scale = min(1.0, _LARGEST / max(grey.shape))
        if scale < 1:
            grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        boxes = []
        for x, y, width, height in np.asarray(cascade.detectMultiScale(grey, 1.1, 5), float).reshape(-1, 4):
            middle = (x + width / 2) / scale - 0.5, (y + height / 2 + _BELOW * width) / scale - 0.5
            boxes.append(Box(*middle, _LENGTH * width / scale))
        return boxes

    return detect
