"""Faces and subjects cut out of a set's pictures, on the canvas, and a set's pictures for any other node."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from PIL import Image

from ..bridge.detection import find_faces, find_subjects
from ..bridge.progress import NodeProgress, check_interrupted
from ..dataset.crops import KINDS, SUBJECT, CropSettings, box_of_mask, boxes_of, crop_subjects, framing_of, originals, stills
from ..dataset.duplicates import is_crop
from ..dataset.folder import plural
from ..dataset.images import read_rgb
from ..dataset.thumbnails import contact_sheet
from ..dataset.types import Box, Picture
from ..dataset.types import Dataset as DatasetRecord
from ..training.errors import PistachioError
from .character_sheet import one
from .schema import ADVANCED, Dataset, FaceDetector, default, problem, schema
from .shown import image_tensor, shown

# A box is drawn as a widget by newer canvases unless it is said to be a socket.
SOCKET = {"forceInput": True}
Boxes = io.Custom("BOUNDING_BOX")
MOST_BYTES = 16e9  # of the images of one list


class DatasetImages(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioDatasetImages",
            display_name="Dataset Images",
            category="Pistachio/dataset",
            description="The pictures of a dataset as a list of images, for any node that works on images: detectors, masks, upscaling. Videos are passed over.",
            search_aliases=["train", "dataset to images", "image list", "load images from dataset"],
            inputs=[
                Dataset.Input("dataset", tooltip="From Load Image Folder or any node after it."),
                io.Int.Input("longest_side", default=1024, optional=True, min=0, max=8192, step=8, tooltip="Larger pictures are made smaller to this many pixels: all of them are in memory at once. 0: as they are."),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", is_output_list=True, tooltip="A list: a node that it is connected to runs once for each picture."),
                io.String.Output("captions", display_name="captions", is_output_list=True, tooltip="The caption of each; empty where there is none."),
                io.String.Output("names", display_name="names", is_output_list=True, tooltip="The file of each, from the dataset's folder."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, dataset, longest_side=1024) -> io.NodeOutput:
        pictures = stills(dataset)
        if not pictures:
            raise PistachioError("The dataset has no pictures, only videos. Connect a set of pictures to Dataset Images.")
        needed = sum(_size_bytes(picture, longest_side) for picture in pictures)
        if needed > MOST_BYTES:
            raise PistachioError(
                f"{plural(len(pictures), 'image')} of this size would take {needed / 1e9:.0f} GB of memory at once. Lower 'longest_side' on Dataset Images, or use the "
                "detectors of Crop Subjects, which look at one picture after the other."
            )
        progress, images = NodeProgress(cls.hidden.unique_id), []
        for done, picture in enumerate(pictures, 1):
            check_interrupted()
            images.append(image_tensor(_limited(read_rgb(picture.path), longest_side)))
            progress(done, len(pictures))
        return io.NodeOutput(images, [picture.caption or "" for picture in pictures], [picture.relative_path for picture in pictures])


def _size_bytes(picture: Picture, longest_side: int) -> float:
    share = min(1.0, longest_side / max(picture.width, picture.height)) if longest_side else 1.0
    return picture.width * picture.height * share * share * 12  # three floats a pixel


def _limited(image: Image.Image, longest_side: int) -> Image.Image:
    share = longest_side / max(image.size)
    if not longest_side or share >= 1:
        return image
    return image.resize((max(1, round(image.width * share)), max(1, round(image.height * share))), Image.Resampling.LANCZOS)


class CropSubjects(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioCropSubjects",
            display_name="Crop Subjects",
            category="Pistachio/dataset",
            description="Cuts faces and subjects out as further pictures of the set, found by ComfyUI's own detectors or marked by masks. The originals stay as they are. Check Dataset tells framing by what is found here.",
            search_aliases=["lora", "train", "face crop", "crop person", "bounding box", "detect faces", "zoom", "rt-detr", "mediapipe"],
            is_output_node=True,
            is_input_list=True,
            inputs=[
                Dataset.Input("dataset", tooltip="A set that is not split yet. Captions are copied, with the words for framing changed."),
                io.Model.Input("detector", optional=True, tooltip="An RT-DETR model from Load Diffusion Model: finds the subject. Needs a ComfyUI that has RT-DETR."),
                FaceDetector.Input("face_detector", optional=True, tooltip="From Load Face Detection Model (MediaPipe): finds faces. Needs a ComfyUI that has it."),
                io.Mask.Input("masks", optional=True, tooltip="One for each picture, in the order of Dataset Images; works on every ComfyUI. The crop goes around what is marked."),
                Boxes.Input("bboxes", optional=True, extra_dict=SOCKET, tooltip="Boxes for each picture from any detector, run on the images of Dataset Images."),
                io.Image.Input("images", optional=True, tooltip="With bboxes: the images that they were found on, when these are not as large as the files."),
                io.Combo.Input("marked", options=list(KINDS), default=SUBJECT, optional=True, tooltip="What masks show, and boxes that don't name it. By a face Check Dataset can tell how a picture is framed."),
                io.String.Input("subject", default="person", optional=True, tooltip="What RT-DETR looks for: person, cat, dog or another of the 80 things of COCO."),
                io.Float.Input("threshold", default=0.5, optional=True, min=0.05, max=0.95, step=0.05, tooltip="How sure a detector must be. Lower finds more, and more that is wrong."),
                io.String.Input("crops_folder", default=default(CropSettings, "folder"), optional=True, placeholder="empty: nothing is written", tooltip="Folder for the crops inside the dataset's own. Load Image Folder reads it with the rest the next time. Empty: nothing is cut; what is found still goes on."),
                io.Float.Input("margin", default=default(CropSettings, "margin"), optional=True, min=0.0, max=3.0, step=0.05, tooltip="Room around what was found, as a share of its size, on each side."),
                io.Int.Input("minimum_size", default=default(CropSettings, "minimum_size"), optional=True, min=16, max=4096, step=8, tooltip="A crop whose shorter side has fewer pixels is left out: it would teach its lack of detail."),
                io.Int.Input("per_picture", default=default(CropSettings, "per_picture"), optional=True, min=1, max=16, tooltip="Crops of each kind from one picture, the largest first. 1 keeps bystanders out.", **ADVANCED),
            ],
            outputs=[Dataset.Output("cropped", display_name="dataset", tooltip="The pictures and the crops. Split Dataset keeps a crop on the side of its picture.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, crops_folder=None):
        return problem(lambda folder: CropSettings(folder=folder.strip()), one(crops_folder))

    @classmethod
    def execute(
        cls, dataset, detector=None, face_detector=None, masks=None, bboxes=None, images=None, marked=SUBJECT, subject="person", threshold=0.5,
        crops_folder=default(CropSettings, "folder"), margin=default(CropSettings, "margin"), minimum_size=default(CropSettings, "minimum_size"),
        per_picture=default(CropSettings, "per_picture"),
    ) -> io.NodeOutput:
        dataset, kind = one(dataset), one(marked)
        settings = CropSettings(folder=one(crops_folder).strip(), margin=one(margin), minimum_size=one(minimum_size), per_picture=one(per_picture))
        if all(source is None for source in (detector, face_detector, masks, bboxes)):
            raise PistachioError("Nothing says where the subjects are. Connect a detector, a face detector, masks or boxes to Crop Subjects.")
        pictures = originals(dataset)
        progress = NodeProgress(one(cls.hidden.unique_id), unit="pictures")
        found: dict[str, tuple[Box, ...]] = {picture.relative_path: () for picture in pictures}
        if masks is not None:
            _add(found, pictures, _from_masks(masks, dataset, kind))
        if bboxes is not None:
            _add(found, pictures, _from_boxes(bboxes, images, dataset, kind))
        if detector is not None or face_detector is not None:
            finders = ([lambda image: find_subjects(one(detector), image, class_name=one(subject).strip(), threshold=one(threshold))] if detector is not None else []) + (
                [lambda image: find_faces(one(face_detector), image, threshold=one(threshold))] if face_detector is not None else []
            )
            for done, picture in enumerate(pictures, 1):
                check_interrupted()
                image = image_tensor(read_rgb(picture.path))
                found[picture.relative_path] += tuple(box for finder in finders for box in finder(image))
                progress(done, len(pictures))
        result = crop_subjects(dataset, found, settings, progress=progress, check_interrupted=check_interrupted)
        new = set(result.written)
        crops = tuple(picture for picture in result.dataset.pictures if picture.relative_path in new)
        sheet = contact_sheet(DatasetRecord(folder=dataset.folder, pictures=crops or result.dataset.pictures))
        return io.NodeOutput(result.dataset, ui=shown(image=sheet, sentences=(*result.notes, _framing_words(result.dataset.pictures))))


def _add(found: dict[str, tuple[Box, ...]], pictures: tuple[Picture, ...], boxes: list[tuple[Box, ...]]) -> None:
    for picture, more in zip(pictures, boxes):
        found[picture.relative_path] += more


def _from_masks(masks: list[torch.Tensor], dataset: DatasetRecord, kind: str) -> list[tuple[Box, ...]]:
    """A mask for each picture; [B, H, W] of one entry are several things in one picture, or one for each picture."""
    entries = [mask if mask.ndim == 3 else mask[None] for mask in masks]
    if len(entries) == 1 and len(entries[0]) > 1:
        entries = [mask[None] for mask in entries[0]]
    return [
        tuple(box for mask in entry for box in box_of_mask(mask.float().cpu().numpy(), picture.width, picture.height, kind=kind))
        for entry, picture in zip(_aligned(entries, dataset, "mask"), originals(dataset))
    ]


def _from_boxes(bboxes: list, images: list[torch.Tensor] | None, dataset: DatasetRecord, kind: str) -> list[tuple[Box, ...]]:
    """Each detector run gives a list with the boxes of each image it saw."""
    entries, pictures = [], originals(dataset)
    for value in bboxes:
        per_image = isinstance(value, list) and all(isinstance(entry, list) for entry in value)
        entries += (value or [[]]) if per_image else [value]
    sizes = [(image.shape[1], image.shape[2]) for batch in images for image in batch.split(1)] if images else [(p.height, p.width) for p in pictures]
    found = []
    for entry, picture, (height, width) in zip(_aligned(entries, dataset, "box list"), pictures, _aligned(sizes, dataset, "image")):
        boxes = boxes_of(entry, kind=kind, scale=(picture.width / width, picture.height / height))
        if any(box.left > picture.width or box.top > picture.height for box in boxes):
            raise PistachioError(f"A box lies outside '{picture.relative_path}'. Connect the images that the boxes were found on to 'images' of Crop Subjects.")
        found.append(boxes)
    return found


def _aligned(entries: list, dataset: DatasetRecord, what: str) -> list:
    """One for each original; where crops of before were looked at too, theirs are dropped."""
    everything, wanted = stills(dataset), originals(dataset)
    if len(entries) == len(wanted):
        return entries
    if len(entries) == len(everything):
        return [entry for entry, picture in zip(entries, everything) if not is_crop(picture.relative_path)]
    raise PistachioError(
        f"{plural(len(entries), what)} came for {plural(len(everything), 'picture')}. Connect Dataset Images to the node that makes them, and that to Crop Subjects, from the same dataset."
    )


def _framing_words(pictures: tuple[Picture, ...]) -> str:
    kinds = [framing_of(p.boxes, p.width, p.height) for p in pictures if p.boxes]
    told = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds) if kind)
    return f"Framing by what was found: {told}." if told else "Framing can't be told by what was found: faces would tell it."
