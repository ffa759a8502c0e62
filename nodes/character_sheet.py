"""The first pictures of a set, from one picture, on the canvas: the prompts of a sheet, the pictures saved, and prompts in a set's mix."""

from __future__ import annotations

import json

import numpy as np
from comfy_api.latest import io
from PIL import Image

from ..bridge import folders
from ..bridge.progress import NodeProgress, check_interrupted
from ..dataset import prompt_builder
from ..dataset.character_sheet import BACKGROUNDS, EDIT_MODELS, EXPRESSIONS, FRAMING_MIXES, LIGHTS, MAX_SHOTS, OUTFITS, SheetOptions, plan_sheet, read_list
from ..dataset.folder import folder_fingerprint, load_folder, plural
from ..dataset.images import content_hash
from ..dataset.sheet_folder import RECORD, check_name, order_of, save_pictures, save_sheet
from ..dataset.thumbnails import contact_sheet
from ..training.errors import PistachioError
from .schema import ADVANCED, Dataset, Sheet, default, problem, schema
from .shown import shown


def pictures_of(images) -> list[Image.Image]:
    """The pictures of an IMAGE, [B, H, W, 3] in 0..1."""
    return [Image.fromarray(np.rint(np.clip(image[..., :3].float().cpu().numpy(), 0, 1) * 255).astype(np.uint8)) for image in images]


def one(value, otherwise=None):
    """Of an input that arrives as a list."""
    return (value[0] if value else otherwise) if isinstance(value, (list, tuple)) else value


class CharacterSheet(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioCharacterSheet",
            display_name="Character Sheet",
            category="Pistachio/dataset",
            description="From one picture of a character to a set: a list of prompts for an image edit model, mixed from angles, expressions, framings, light, outfits and backgrounds, with the caption and the seed of each.",
            search_aliases=["lora", "train", "reference sheet", "synthetic dataset", "one picture", "qwen image edit", "kontext", "character consistency"],
            is_output_node=True,
            inputs=[
                io.Image.Input("image", tooltip="The one picture of the character that the edit model works from. Another picture makes another sheet."),
                io.String.Input("folder", default="my_character", placeholder="folder in ComfyUI's input", tooltip="Where Save To Dataset puts the pictures, in ComfyUI's input folder. What was made there before is not made again."),
                io.String.Input("trigger_word", default="", optional=True, placeholder="e.g. ohwx", tooltip="The word that will stand for the character. It goes first in every caption."),
                io.String.Input("class_noun", default="", optional=True, placeholder="e.g. woman", tooltip="What the character is: in the captions, after the trigger word."),
                io.String.Input("subject", default=default(SheetOptions, "subject"), optional=True, placeholder="e.g. the woman with short black hair", tooltip="What the edit model calls the character. In the prompts alone, never in a caption. Empty: 'the' and the class noun."),
                io.Combo.Input("edit_model", options=list(EDIT_MODELS), default=default(SheetOptions, "edit_model"), optional=True, tooltip="Each kind of model wants its instructions worded in its own way. FLUX.2 is for Klein and dev."),
                io.Int.Input("pictures", default=24, optional=True, min=1, max=MAX_SHOTS, tooltip="In the whole sheet. More later adds to those that are made."),
                io.Int.Input("at_once", default=6, optional=True, min=0, max=MAX_SHOTS, tooltip="Pictures that one Run makes; they are saved when all of them are made. Run again for the next ones. 0: all that are missing."),
                io.Combo.Input("framing_mix", options=list(FRAMING_MIXES), default=default(SheetOptions, "framing_mix"), optional=True, tooltip="How many close-ups, upper body and full body pictures."),
                io.String.Input("outfits", default="\n".join(OUTFITS), optional=True, multiline=True, tooltip="One a line, as in 'wearing ...'. Empty: the clothes stay as they are and belong to the character."),
                io.String.Input("backgrounds", default="\n".join(BACKGROUNDS), optional=True, multiline=True, tooltip="One a line, such as 'in a park'. Empty: the background stays as it is."),
                io.String.Input("expressions", default="\n".join(EXPRESSIONS), optional=True, multiline=True, tooltip="One a line, as in 'with ...'. Empty: none is asked for.", **ADVANCED),
                io.String.Input("lights", default="\n".join(LIGHTS), optional=True, multiline=True, tooltip="One a line. They should fit every background. Empty: the light is left to the model.", **ADVANCED),
                io.Int.Input("resolution", default=default(SheetOptions, "resolution"), optional=True, min=256, max=2048, step=16, tooltip="Of a square picture; taller ones have as many pixels."),
                io.Int.Input("sheet_seed", default=default(SheetOptions, "seed"), optional=True, min=0, max=2**53 - 1, control_after_generate=False, tooltip="Another number mixes the lists anew and gives other seeds: another sheet."),
            ],
            outputs=[
                io.String.Output("prompt", display_name="prompt", is_output_list=True, tooltip="A list: every node that it is connected to runs once for each prompt."),
                io.String.Output("caption", display_name="caption", is_output_list=True, tooltip="The caption of each picture: what was asked for, led by the trigger word."),
                io.Int.Output("seed", display_name="seed", is_output_list=True, tooltip="For KSampler."),
                io.Int.Output("width", display_name="width", is_output_list=True, tooltip="For the empty latent: close-ups are square, the others taller."),
                io.Int.Output("height", display_name="height", is_output_list=True, tooltip="For the empty latent."),
                Sheet.Output("sheet", display_name="sheet", tooltip="For Save To Dataset: which pictures are being made, and where they go."),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder=None):
        return problem(folders.new_picture_folder, folder)

    @classmethod
    def fingerprint_inputs(cls, folder=None, **inputs):
        if folder is None:
            return ""
        path = folders.new_picture_folder(folder)
        record = path / RECORD
        status = f"{record.stat().st_size}|{record.stat().st_mtime_ns}" if record.exists() else ""
        return f"{folder_fingerprint(path)}|{status}"

    @classmethod
    def execute(
        cls, image, folder, trigger_word="", class_noun="", subject=default(SheetOptions, "subject"), edit_model=default(SheetOptions, "edit_model"),
        pictures=24, at_once=6, framing_mix=default(SheetOptions, "framing_mix"), outfits="\n".join(OUTFITS), backgrounds="\n".join(BACKGROUNDS),
        expressions="\n".join(EXPRESSIONS), lights="\n".join(LIGHTS), resolution=default(SheetOptions, "resolution"), sheet_seed=default(SheetOptions, "seed"),
    ) -> io.NodeOutput:
        options = SheetOptions(
            trigger_word=trigger_word, class_noun=class_noun, subject=subject, edit_model=edit_model, framing_mix=framing_mix, outfits=read_list(outfits),
            backgrounds=read_list(backgrounds), expressions=read_list(expressions), lights=read_list(lights), resolution=resolution, seed=sheet_seed,
        )
        shots = plan_sheet(options, pictures, reference=content_hash(pictures_of(image)[0]))
        order = order_of(folders.new_picture_folder(folder), shots, at_once=at_once, trigger_word=trigger_word)
        # Lists may not be empty: a node after them would fail. Save To Dataset asks for no picture of a complete sheet.
        now = order.shots or shots[: at_once or None]
        other = ("The folder also holds pictures of another sheet: of another reference picture, model, seed or other lists.",) if order.other_reference else ()
        prompts = tuple(f"{shot.number}. {shot.instruction}" for shot in order.shots)
        return io.NodeOutput(
            [shot.instruction for shot in now], [shot.caption for shot in now], [shot.seed for shot in now], [shot.width for shot in now],
            [shot.height for shot in now], order, ui=shown(sentences=(order.words, *other, "", *prompts)),
        )


class SaveToDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioSaveToDataset",
            display_name="Save To Dataset",
            category="Pistachio/dataset",
            description="Writes pictures with their captions into a folder and gives it on as a dataset. Nothing is overwritten, and pixels that are there already are not saved twice.",
            search_aliases=["lora", "train", "caption", "save images with captions", "export dataset", "save text", "append to dataset"],
            is_output_node=True,
            is_input_list=True,
            inputs=[
                io.Image.Input("images", lazy=True, tooltip="A list or a batch of pictures. With a complete sheet none is asked for, so nothing before this node runs."),
                Sheet.Input("sheet", optional=True, tooltip="From Character Sheet: folder, names and captions come from it."),
                io.String.Input("captions", default="", optional=True, force_input=True, tooltip="One for each picture, or one for all. Not needed with a sheet."),
                io.String.Input("folder", default="", optional=True, placeholder="empty: the sheet's", tooltip="Folder in ComfyUI's input folder, or 'output/x'. Made when it is not there. Not used with a sheet."),
                io.String.Input("name", default="picture", optional=True, tooltip="Beginning of the files' names: picture-0001.png. Not used with a sheet."),
                io.String.Input("trigger_word", default="", optional=True, placeholder="empty: the sheet's", tooltip="Goes on with the dataset. It is not written into the captions here."),
            ],
            outputs=[Dataset.Output("saved", display_name="dataset", tooltip="Every picture of the folder, also those of before, without those excluded in the review.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, folder="", name="picture"):
        answers = [problem(folders.new_picture_folder, one(folder) or None), problem(check_name, one(name))]
        return next((answer for answer in answers if answer is not True), True)

    @classmethod
    def fingerprint_inputs(cls, folder="", **inputs):
        return folder_fingerprint(folders.new_picture_folder(one(folder))) if one(folder) else ""

    @classmethod
    def check_lazy_status(cls, images=None, sheet=None, **inputs):
        order = one(sheet)
        return [] if order is not None and not order.shots else ["images"]

    @classmethod
    def execute(cls, images, sheet=None, captions="", folder="", name="picture", trigger_word="") -> io.NodeOutput:
        order, told = one(sheet), one(trigger_word, "").strip()
        if order is not None:
            saved = save_sheet(order, [picture for batch in images for picture in pictures_of(batch)]) if order.shots else None
            path, words = order.folder, saved.words if saved else order.words
            told = told or order.trigger_word
        else:
            if not one(folder, "").strip():
                raise PistachioError("No folder is given. Write a name such as 'my_character' on Save To Dataset, or connect 'sheet' of Character Sheet.")
            path = folders.new_picture_folder(one(folder))
            batches = [pictures_of(batch) for batch in images]
            saved = save_pictures(path, [picture for batch in batches for picture in batch], _captions(captions, batches), name=check_name(one(name)))
            words = saved.words
        dataset = load_folder(
            path, trigger_word=told, roots=folders.allowed_roots(), index=folders.pictures_index(), progress=NodeProgress(one(cls.hidden.unique_id), unit="pictures"),
            check_interrupted=check_interrupted,
        )
        left = order.total - order.made - len(order.shots) if order is not None else 0
        more = (f"{plural(left, 'picture')} of the sheet to go: Run again.",) if left else ()
        count = f"{plural(len(dataset.pictures), 'picture')} in the folder."
        return io.NodeOutput(dataset, ui=shown(image=contact_sheet(dataset), sentences=(f"{words} {count}", *more, *dataset.notes)))


def _captions(captions, batches: list[list[Image.Image]]) -> list[str]:
    """One for each picture."""
    texts = [text or "" for text in (captions if isinstance(captions, (list, tuple)) else [captions])]
    count = sum(map(len, batches))
    if len(texts) == count:
        return texts
    if len(texts) == len(batches):
        return [text for text, batch in zip(texts, batches) for _ in batch]
    if len(texts) == 1:
        return texts * count
    raise PistachioError(f"{len(texts)} captions came with {plural(count, 'picture')}. Connect one for each picture, or one for all, to Save To Dataset.")


class BuildPrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioBuildPrompts",
            display_name="Build Prompts",
            category="Pistachio/dataset",
            description="Prompts in the mix of a set: framing, angle, expression, background and light as often as its captions name them, combined anew. For samples while training and for tests afterwards.",
            search_aliases=["lora", "test prompts", "sample prompts", "prompt list", "prompt generator"],
            inputs=[
                Dataset.Input("dataset", tooltip="A captioned set."),
                io.Int.Input("prompts", default=8, optional=True, min=1, max=prompt_builder.MAX_PROMPTS, tooltip="How many. Sample Settings takes up to 16."),
                io.String.Input("trigger_word", default="", optional=True, placeholder="e.g. ohwx", tooltip="Goes first in every prompt. Empty: the one given on a node before."),
                io.String.Input("class_noun", default="", optional=True, placeholder="e.g. woman", tooltip="What the character is, after the trigger word."),
                io.Boolean.Input("framing", default=True, optional=True, tooltip="Close-up, upper body, full body."),
                io.Boolean.Input("angle", default=True, optional=True, tooltip="From which side."),
                io.Boolean.Input("expression", default=True, optional=True, tooltip="Smile, laugh, serious look."),
                io.Boolean.Input("background", default=True, optional=True, tooltip="Where."),
                io.Boolean.Input("light", default=True, optional=True, tooltip="Soft, sunny, studio, from behind."),
                io.Int.Input("mix_seed", default=0, optional=True, min=0, max=2**53 - 1, control_after_generate=False, tooltip="Another number combines the same phrases in another way."),
            ],
            outputs=[
                io.String.Output("prompt", display_name="prompt", is_output_list=True, tooltip="A list: a node that it is connected to runs once for each prompt."),
                io.String.Output("text", display_name="text", tooltip="The same, one a line, for the prompts of Sample Settings."),
                io.String.Output("mix", display_name="mix", tooltip="JSON: how many captions name what, by topic."),
            ],
        )

    @classmethod
    def execute(
        cls, dataset, prompts=8, trigger_word="", class_noun="", framing=True, angle=True, expression=True, background=True, light=True, mix_seed=0
    ) -> io.NodeOutput:
        trigger = trigger_word.strip() or dataset.trigger_word
        wanted = {"framing": framing, "angle": angle, "expression": expression, "background": background, "light": light}
        mix = prompt_builder.read_mix((picture.caption for picture in dataset.pictures), trigger)
        built = prompt_builder.build_prompts(
            mix, prompts, trigger=trigger, class_noun=class_noun, topics=tuple(topic for topic in prompt_builder.TOPICS if wanted[topic]), seed=mix_seed
        )
        counts = {topic: {words or "not said": number for words, number in numbers.items()} for topic, numbers in mix.counts.items()}
        text = "\n".join(built)
        return io.NodeOutput(list(built), text, json.dumps(counts, ensure_ascii=False), ui=shown(sentences=(*mix.words, "", text)))
