"""Pictures without their colours: what shape something has, and which letter, a tower shall see whatever its colour.

Some pairs of colour and shape occur in no training picture. A tower that always sees both together learns some shapes
as those of certain colours; where it sees outlines alone, it has to learn those.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trol_benchmarks.world.scene import COLOURS
from trol_export.tiny.patch_labels import LABELS, OF_COLOUR

# The labels that cannot be seen in such a picture: bool (labels,).
OF_COLOURS: Tensor = torch.tensor([label in {*COLOURS, *OF_COLOUR} for label in LABELS])


def without_colours(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture in shades of grey: RGB, of the same size.

    Each is a mean of red, green and blue with weights of its own, uniform over all such means, so that a colour is
    light in one picture and dark in another.
    """
    weights = rng.dirichlet((1, 1, 1)).tolist()
    return picture.convert("RGB", (*weights, 0) * 3)
