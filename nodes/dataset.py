"""Pictures on the canvas: load a folder, hold some out, encode them."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge import encode, folders
from ..bridge.progress import NodeProgress, check_interrupted
from ..dataset import split
from ..dataset.folder import folder_fingerprint, load_folder
from ..dataset.thumbnails import contact_sheet
from .schema import ADVANCED, Dataset, Encoded, problem, schema
from .shown import shown


class LoadImageFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioLoadImageFolder",
            display_name="Load Image Folder",
            category="Pistachio/dataset",
            description="Reads a folder of pictures with their captions (a .txt file of the same name beside each). About 20 pictures of one character are a good number.",
            search_aliases=["dataset", "load images from folder", "training images", "captions"],
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
            folders.picture_folder(folder), recursive=recursive,
            progress=NodeProgress(cls.hidden.unique_id, unit="pictures"), check_interrupted=check_interrupted,
        )
        captioned = sum(1 for picture in dataset.pictures if picture.caption)
        count = f"{len(dataset.pictures)} pictures, {captioned} with a caption."
        return io.NodeOutput(dataset, ui=shown(image=contact_sheet(dataset), sentences=(count, *dataset.notes)))


class SplitDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioSplitDataset",
            display_name="Split Dataset",
            category="Pistachio/dataset",
            description="Holds some pictures out of training. The loss on them shows which checkpoint has learned the character and which has only memorised the pictures.",
            search_aliases=["train eval split", "validation", "hold out", "80/20"],
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
        sentences = [f"{len(result.split.train)} pictures to train on, {len(result.split.held_out)} held out.", *result.split.notes]
        if write_folders.strip():
            train, held_out = split.write_folders(result, folders.output_folder(write_folders))
            sentences.append(f"Copied to {train} and {held_out}.")
        return io.NodeOutput(result, ui=shown(image=contact_sheet(result), sentences=tuple(sentences)))


class EncodeDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioEncodeDataset",
            display_name="Encode Dataset",
            category="Pistachio/dataset",
            description="Runs every picture through the VAE and every caption through CLIP, once: the results are kept on disk and found again.",
            search_aliases=["cache latents", "encode captions", "aspect buckets"],
            inputs=[
                Dataset.Input("dataset", tooltip="Captioned pictures. Without Split Dataset before it, the usual 20 % are held out here."),
                io.Vae.Input("vae", tooltip="The VAE that belongs to the model you train."),
                io.Clip.Input("clip", tooltip="The text encoder that belongs to the model you train."),
                io.String.Input(
                    "trigger_word", default="", optional=True, placeholder="e.g. ohwx",
                    tooltip="A rare word that stands for the character. It is put before every caption that lacks it; write it in your prompts later. Empty: the one given on Caption Dataset, if any.",
                ),
                io.Int.Input(
                    "resolution", default=1024, optional=True, min=64, max=4096, step=8,
                    tooltip="Training size in pixels: each picture is cropped to its own shape with about this area squared. Usual: 512 for SD1.5 and Wan 2.1, 1024 for SDXL, SD3.5 and Flux. Lower is faster and needs less memory.",
                ),
                io.Boolean.Input(
                    "allow_missing_captions", default=False, optional=True,
                    tooltip="Train pictures without a caption on the trigger word alone. Off: they are named in an error.",
                    **ADVANCED,
                ),
            ],
            outputs=[Encoded.Output("encoded", display_name="encoded", tooltip="Latents and encoded captions, ready for Train LoRA.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, dataset, vae, clip, trigger_word="", resolution=1024, allow_missing_captions=False) -> io.NodeOutput:
        encoded = encode.encode(
            dataset, vae, clip, trigger_word=trigger_word, resolution=resolution, allow_missing=allow_missing_captions,
            node_id=cls.hidden.unique_id,
        )
        sizes = sorted({f"{item.width}x{item.height}" for item in encoded.items})
        trigger = f"trigger word '{encoded.trigger_word}'" if encoded.trigger_word else "no trigger word"
        count = f"{len(encoded.train)} pictures to train on, {len(encoded.held_out)} held out, {trigger}, sizes {', '.join(sizes)}."
        # The nodes before this one show what they said.
        notes = encoded.notes[len(dataset.notes):]
        return io.NodeOutput(encoded, ui=shown(sentences=(count, *notes)))
