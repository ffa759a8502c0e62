"""What a training run needs to be told, found from the base model and the pictures alone: its training size and its name.

Steps, learning rate and memory plan themselves where they are used; this knows nothing of them.
"""

from __future__ import annotations

import hashlib
import re

from ..dataset.types import Dataset
from .families import family_of
from .fingerprint import fingerprint

# The size that a family was made at, where it isn't a megapixel. Video families train quickly and well at this one.
RESOLUTIONS = {
    "SD1.5": 512, "SD2.x": 512, "Wan 2.1 T2V, Wan 2.2 T2V 14B": 512, "Wan 2.2 TI2V 5B": 512, "HunyuanVideo": 512, "LTX-Video": 512,
    "Cosmos 1 T2W": 512,
}
USUAL_RESOLUTION = 1024
FALLBACK_NAME = "character"  # without a trigger word


def resolution_for(model) -> int:
    return RESOLUTIONS.get(family_of(model.model), USUAL_RESOLUTION)


def run_name_for(model, dataset: Dataset, resolution: int) -> str:
    """The same model, pictures, captions and trigger word give the same name, so that Run goes on; any other gives another, so that nothing is in its way."""
    digest = hashlib.sha256(f"{fingerprint(model, prefix='diffusion_model.')}|{resolution}|{dataset.trigger_word}\n".encode())
    for line in sorted(f"{picture.content_hash}|{picture.caption}" for picture in dataset.pictures):
        digest.update(f"{line}\n".encode())
    if dataset.split is not None:
        digest.update("|".join(dataset.split.held_out).encode())
    parts = [dataset.trigger_word or FALLBACK_NAME, family_of(model.model).split(",")[0], digest.hexdigest()[:6]]
    return "_".join(cleaned for part in parts if (cleaned := re.sub(r"[^A-Za-z0-9-]+", "", part.replace(" ", "-")).strip("-")))
