"""Pictures and videos on the canvas: load a folder, hold some out."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge import folders
from ..bridge.progress import NodeProgress, check_interrupted
from ..dataset import split
from ..dataset.folder import folder_fingerprint, load_folder, plural
from ..dataset.thumbnails import contact_sheet
from ..dataset.video import CLIP_CHOICES, ClipSettings
from ..training.errors import PistachioError
from ..training.messages import message
from .schema import ADVANCED, Dataset, default, problem, schema
from .shown import shown

class LoadImageFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioLoadImageFolder",
            display_name="Load Image Folder",
            category="Pistachio/dataset",
            description="Reads a folder of pictures with their captions (a .txt file of the same name beside each). About 20 pictures of one character are a good number.",
            search_aliases=["lora", "train", "kohya", "caption", "joycaption", "dataset", "load images from folder", "training images", "captions"],
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "folder", default="my_character", placeholder="folder in ComfyUI's input",
                    tooltip="Folder in ComfyUI's input folder, e.g. my_character. Also 'output/x', or a whole path below input/, output/ or a folder listed under 'pistachio' in extra_model_paths.yaml.",
                ),
                io.Boolean.Input("recursive", default=True, optional=True, tooltip="Also read the pictures in subfolders. Hidden folders are passed over."),
            ],
            outputs=[Dataset.Output("pictures", display_name="dataset", tooltip="The pictures in natural order, with the captions found beside them.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, folder=None):
        return problem(folders.picture_folder, folder)

    @classmethod
    def fingerprint_inputs(cls, folder=None, recursive=True):
        return folder_fingerprint(folders.picture_folder(folder), recursive=recursive) if folder is not None else ""

    @classmethod
    def execute(cls, folder, recursive=True) -> io.NodeOutput:
        dataset = load_folder(
            folders.picture_folder(folder), recursive=recursive, roots=folders.allowed_roots(), index=folders.pictures_index(),
            progress=NodeProgress(cls.hidden.unique_id, unit="pictures"), check_interrupted=check_interrupted,
        )
        captioned = sum(1 for picture in dataset.pictures if picture.caption)
        count = message("node.folder", "{pictures} pictures, {captioned} with a caption.", pictures=len(dataset.pictures), captioned=captioned)
        return io.NodeOutput(dataset, ui=shown(image=contact_sheet(dataset), sentences=(count, *dataset.notes)))


class LoadVideoFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioLoadVideoFolder",
            display_name="Load Video Folder",
            category="Pistachio/dataset",
            description="Reads a folder of videos (and pictures) with their captions, for Wan 2.1 and other video models. Each video becomes one or several clips of a fixed number of frames.",
            search_aliases=["lora", "train", "kohya", "caption", "joycaption", "dataset", "video dataset", "training videos", "clips", "frames"],
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "folder", default="my_character", placeholder="folder in ComfyUI's input",
                    tooltip="Folder in ComfyUI's input folder, e.g. my_character. Also 'output/x', or a whole path below input/, output/ or a folder listed under 'pistachio' in extra_model_paths.yaml.",
                ),
                io.Boolean.Input("recursive", default=True, optional=True, tooltip="Also read what is in subfolders. Hidden folders are passed over."),
                io.String.Input(
                    "frame_buckets", default="33", optional=True,
                    tooltip="Lengths of the clips in frames, each 4n + 1, e.g. '17, 33, 81'. A video takes the longest that it fills; one shorter than all of them is left out with a reason. More frames need more memory.",
                ),
                io.Float.Input(
                    "fps", default=default(ClipSettings, "fps"), optional=True, min=0.0, max=240.0, step=0.5,
                    tooltip="Frames a second after resampling: 16 for Wan 2.1, 24 for HunyuanVideo and LTX. 0: each video's own.",
                ),
                io.Combo.Input(
                    "clip_choice", options=list(CLIP_CHOICES), default=default(ClipSettings, "choice"), optional=True,
                    tooltip="Which part of a longer video: its start, its middle, random parts, or parts spread evenly over it.",
                ),
                io.Int.Input("clips_per_video", default=default(ClipSettings, "clips_per_video"), optional=True, min=1, max=1000, tooltip="How many clips, for random and uniform. Clips of one video are never split between training and held-out."),
                io.Int.Input("seed", default=default(ClipSettings, "seed"), optional=True, min=0, max=2**53 - 1, control_after_generate=False, tooltip="Of the random choice: the same seed takes the same clips.", **ADVANCED),
            ],
            outputs=[Dataset.Output("videos", display_name="dataset", tooltip="The clips and pictures in natural order, with the captions found beside the files.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, folder=None):
        return problem(folders.picture_folder, folder)

    @classmethod
    def fingerprint_inputs(cls, folder=None, recursive=True, **inputs):
        return folder_fingerprint(folders.picture_folder(folder), recursive=recursive, videos=True) if folder is not None else ""

    @classmethod
    def execute(cls, folder, recursive=True, frame_buckets="33", fps=16.0, clip_choice="start", clips_per_video=1, seed=0) -> io.NodeOutput:
        settings = ClipSettings(
            frame_buckets=_frame_buckets(frame_buckets), fps=fps, choice=clip_choice, clips_per_video=clips_per_video, seed=seed
        )
        dataset = load_folder(
            folders.picture_folder(folder), recursive=recursive, clips=settings, roots=folders.allowed_roots(), index=folders.pictures_index(),
            progress=NodeProgress(cls.hidden.unique_id, unit="files"), check_interrupted=check_interrupted,
        )
        clips = [picture for picture in dataset.pictures if picture.clip is not None]
        lengths = ", ".join(map(str, sorted({picture.clip.num_frames for picture in clips})))
        count = f"{plural(len(clips), 'clip')} of {plural(len({clip.path for clip in clips}), 'video')}" + (f" ({lengths} frames)" if clips else "")
        count += f", {plural(len(dataset.pictures) - len(clips), 'picture')}, {sum(1 for p in dataset.pictures if p.caption)} with a caption."
        return io.NodeOutput(dataset, ui=shown(image=contact_sheet(dataset), sentences=(count, *dataset.notes)))


def _frame_buckets(text: str) -> tuple[int, ...]:
    parts = [part for part in text.replace(",", " ").split() if part]
    if not all(part.isdecimal() for part in parts):
        raise PistachioError(f"'{text}' gives no numbers of frames. Write whole numbers such as '17, 33' on Load Video Folder.")
    return tuple(sorted(set(map(int, parts))))


class SplitDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioSplitDataset",
            display_name="Split Dataset",
            category="Pistachio/dataset",
            description="Holds some pictures out of training. The loss on them shows which checkpoint has learned the character and which has only memorised the pictures.",
            search_aliases=["lora", "train", "kohya", "train eval split", "validation", "hold out", "80/20"],
            is_output_node=True,
            inputs=[
                Dataset.Input("dataset", tooltip="From Load Image Folder or Caption Dataset."),
                io.Float.Input(
                    "held_out_share", default=0.2, optional=True, min=0.0, max=0.5, step=0.05,
                    tooltip="Share of the pictures to hold out, at least four where there are enough. 0 trains on all of them, and then nothing can detect memorising.",
                ),
                io.String.Input(
                    "held_out_pictures", default="", optional=True, multiline=True, placeholder="empty: chosen automatically",
                    tooltip="Names of the pictures to hold out, separated by commas or lines, e.g. 'portrait 3.png' or 'eval/*'. Empty: chosen automatically, the same ones every time.",
                ),
                io.String.Input(
                    "write_folders", default="", optional=True, placeholder="empty: off",
                    tooltip="Folder below output/ to copy the two parts into, as train/ and eval/ with their captions. Empty: nothing is copied. Never overwrites anything.",
                    **ADVANCED,
                ),
            ],
            outputs=[Dataset.Output("split", display_name="dataset", tooltip="The same pictures with the held-out ones marked.")],
        )

    @classmethod
    def validate_inputs(cls, write_folders=""):
        return problem(folders.output_folder, write_folders or None)

    @classmethod
    def execute(cls, dataset, held_out_share=0.2, held_out_pictures="", write_folders="") -> io.NodeOutput:
        names = tuple(name.strip() for name in held_out_pictures.replace("\n", ",").split(",") if name.strip())
        result = split.split_dataset(dataset, held_out_share=held_out_share, held_out_names=names)
        count = message(
            "node.split", "{train} pictures to train on, {held_out} held out.", train=len(result.split.train), held_out=len(result.split.held_out),
        )
        sentences = [count, *result.split.notes]
        if write_folders.strip():
            train, held_out = split.write_folders(result, folders.output_folder(write_folders))
            sentences.append(message("node.split_copied", "Copied to {train} and {held_out}.", train=str(train), held_out=str(held_out)))
        return io.NodeOutput(result, ui=shown(image=contact_sheet(result), sentences=tuple(sentences)))
