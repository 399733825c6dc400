"""Class names, ids and colours, and their mapping to the files of Smith et al.

Label 0 is the background in every network. The ids below are those of label
images and of stage 1, in the paper's order (Sec. 3.1); left and right are as
seen in the image. They are *not* the file numbers KK of Smith et al., which
list both eyebrows before both eyes; `SMITH_FILES` maps ids to file numbers.
"""

import numpy as np

PARTS = (
    "background",
    "left_eyebrow",
    "left_eye",
    "right_eyebrow",
    "right_eye",
    "nose",
    "upper_lip",
    "inner_mouth",
    "lower_lip",
)

#: id -> numbers KK of the files NAME_lblKK.png whose soft maps are summed; skin (01) and hair (10) are background.
SMITH_FILES = (
    ("00", "01", "10"),
    ("02",),
    ("04",),
    ("03",),
    ("05",),
    ("06",),
    ("07",),
    ("08",),
    ("09",),
)

#: id -> id of the same part on the other side of the face, for mirroring images.
MIRRORED = np.array([0, 3, 4, 1, 2, 5, 6, 7, 8], np.uint8)

#: id -> RGB, the colours of label images and overlays.
COLOURS = np.array(
    [
        (0, 0, 0),
        (255, 128, 0),
        (40, 90, 255),
        (200, 80, 0),
        (90, 200, 255),
        (255, 225, 60),
        (230, 40, 60),
        (255, 255, 255),
        (210, 60, 200),
    ],
    np.uint8,
)
