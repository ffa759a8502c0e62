"""ComfyUI's own detectors: which of them this version has, and what they find in a picture.

Owns the calls of RT-DETR (people, animals, things) and MediaPipe (faces). Downloads nothing: their models are loaded by
ComfyUI's own loader nodes. Knows nothing about what is done with a box.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..dataset.crops import FACE, SUBJECT, boxes_of
from ..dataset.types import Box
from ..training.errors import PistachioError

MOST_BOXES = 16
WITHOUT = (
    "Connect masks of the subjects instead, one a picture, from any node that makes them, or boxes of another pack's detector; or update ComfyUI."
)


def find_subjects(model: Any, image: Tensor, *, class_name: str, threshold: float) -> tuple[Box, ...]:
    """By RT-DETR, in one picture [1, H, W, 3]. `class_name`: one of COCO's 80, such as person or cat."""
    try:
        from comfy.ldm.rt_detr.rtdetr_v4 import COCO_CLASSES, RTv4
        from comfy_extras.nodes_rtdetr import RTDETR_detect
    except ImportError as error:
        raise PistachioError(f"This ComfyUI has no subject detector: RT-DETR came in a later version. {WITHOUT}") from error
    if not isinstance(model.model.diffusion_model, RTv4):
        raise PistachioError(
            f"The model at 'detector' is {type(model.model).__name__}, which finds nothing in pictures. Load an RT-DETR file with Load Diffusion Model and connect that."
        )
    if class_name not in COCO_CLASSES:
        raise PistachioError(f"RT-DETR knows no '{class_name}'. It knows {', '.join(COCO_CLASSES)}. Write one of these as 'subject' on Crop Subjects.")
    found = RTDETR_detect.execute(model, image, threshold, class_name, MOST_BOXES).args[0][0]
    return boxes_of([entry | {"label": SUBJECT} for entry in found], kind=SUBJECT)


def find_faces(detector: Any, image: Tensor, *, threshold: float) -> tuple[Box, ...]:
    """By MediaPipe, in one picture [1, H, W, 3]; near and far faces."""
    try:
        from comfy_extras.nodes_mediapipe import MediaPipeFaceLandmarker
    except ImportError as error:
        raise PistachioError(f"This ComfyUI has no face detector: MediaPipe came in a later version. {WITHOUT}") from error
    found = MediaPipeFaceLandmarker.execute(detector, image, "both", MOST_BOXES, threshold, "empty").args[1][0]
    return boxes_of(list(found), kind=FACE)
