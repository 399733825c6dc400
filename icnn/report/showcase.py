"""Selection of the example faces of a report, and their contents (the paper's Fig. 2 and 4)."""

from collections.abc import Sequence

import numpy as np

from icnn.data.folder import Face
from icnn.data.geometry import Letterbox
from icnn.data.resample import warp
from icnn.model.patches import cut_patch
from icnn.model.pipeline import Pipeline
from icnn.report.page import Example, PatchExample, PipelineExample
from icnn.stages import NETWORKS, PATCHES


def _ranked(per_image: Sequence[float | None]) -> list[int]:
    """Return image indices sorted by descending F; images without F come last."""
    return sorted(range(len(per_image)), key=lambda n: -1.0 if (f := per_image[n]) is None else f, reverse=True)


def result_examples(
    pipeline: Pipeline, faces: Sequence[Face], per_image: Sequence[float | None], each: int = 3
) -> list[Example]:
    """Return the `each` best, middle and worst faces by F, parsed end to end; no face twice."""
    ranked = _ranked(per_image)
    middle = max(0, (len(ranked) - each) // 2)
    chosen = [*ranked[:each], *ranked[middle : middle + each], *ranked[-each:]]
    chosen = list(dict.fromkeys(chosen))
    predictions = pipeline.parse([faces[n].image for n in chosen])
    return [
        Example(faces[n].name, faces[n].image, faces[n].labels(), prediction, per_image[n])
        for n, prediction in zip(chosen, predictions, strict=True)
    ]


def pipeline_example(pipeline: Pipeline, faces: Sequence[Face], per_image: Sequence[float | None]) -> PipelineExample:
    """Return the intermediate results of both stages on the face of median F."""
    ranked = _ranked(per_image)
    image = faces[ranked[len(ranked) // 2]].image
    size = NETWORKS["stage1"].size
    small, _ = warp(image, Letterbox.of(image.shape[0], image.shape[1], size).matrix(), size)
    located = pipeline.locate([image])
    patches = pipeline.label_patches([image], located.centres)
    shown = []
    for patch, origins, logits, centre in zip(
        PATCHES, patches.origins, patches.logits, located.centres[0], strict=True
    ):
        values, _ = cut_patch(image, tuple(origins[0]), patch)
        labels = pipeline.labels_of_patch(patch, logits)[0]
        shown.append(PatchExample(patch.name, values, labels, patch.mirrored, tuple(centre.tolist())))
    (result,) = pipeline.label_around([image], located.centres)
    return PipelineExample(image, np.rint(small).astype(np.uint8), located.labels[0], tuple(shown), result)
