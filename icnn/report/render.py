"""Pages from the templates beside this file: one HTML file each, without scripts and without links to other files.

Images are embedded as PNG, charts are inline SVG. Jinja2 escapes all text, and is imported only to write a page.
"""

import base64
import io
import os
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from icnn.data.overlay import label_picture, overlay
from icnn.report.formats import count, decimals, digits, finite, part_name, score_cells
from minicnn.checkpoint import atomic_path

if TYPE_CHECKING:
    from jinja2 import Environment

#: Maximum side of an image on the page, in pixels; larger images are scaled down.
LONGEST = 512


def write_page(path: str | os.PathLike[str], template: str, **shown: Any) -> None:
    """Write one HTML page atomically.

    Parameters
    ----------
    path : path-like
        File to write; its folder must exist.
    template : str
        File name in ``templates/``.
    **shown
        Variables of the template.
    """
    page = _environment().get_template(template).render(shown)
    with atomic_path(path) as temporary:
        temporary.write_text(page, "utf-8", errors="replace")  # a file name may contain bytes that do not decode


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("icnn.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for function in (count, data_uri, decimals, digits, finite, label_picture, overlay, part_name, score_cells):
        environment.filters[function.__name__] = function
    return environment


def data_uri(image: np.ndarray) -> str:
    """Encode a non-empty image (H, W, 3) uint8 as a PNG data URI, scaled down to at most LONGEST pixels a side."""
    picture = Image.fromarray(np.ascontiguousarray(image, np.uint8))
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
