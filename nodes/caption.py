"""Captions on the canvas: choose JoyCaption, say what to ask of it, caption a dataset."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge import captioning, folders
from ..dataset.folder import shown_name
from ..dataset.joycaption.model import PRECISIONS
from ..dataset.joycaption.prompts import CAPTION_TYPES, CHARACTER_OPTIONS, EXTRA_OPTIONS, KINDS, LENGTHS, NAME_OPTION, CaptionRequest
from .schema import ADVANCED, Captioner, CaptionOptions, Dataset, default, problem, schema
from .shown import shown

# Number in EXTRA_OPTIONS -> input id. Option 1 is the name, which has an input of its own.
OPTION_INPUTS = {
    2: "no_unchangeable_attributes", 3: "lighting", 23: "shot_size", 27: "no_meta_phrases",
    4: "camera_angle", 5: "watermark_or_not", 6: "jpeg_artifacts", 7: "camera_details", 8: "keep_pg", 9: "no_resolution",
    10: "aesthetic_quality", 11: "composition", 12: "no_text", 13: "depth_of_field", 14: "light_sources", 15: "no_ambiguity",
    16: "content_rating", 17: "most_important_only", 18: "no_artist_or_title", 19: "orientation", 20: "vulgar", 21: "blunt",
    22: "ages", 24: "no_mood", 25: "vantage_height", 26: "mention_watermark",
}
assert {NAME_OPTION, *OPTION_INPUTS} == set(range(1, len(EXTRA_OPTIONS)))


class LoadJoyCaption(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioLoadJoyCaption",
            display_name="Load JoyCaption",
            category="Pistachio/caption",
            description="Chooses the captioner. It is downloaded (about 17 GB) and loaded only when a picture needs a caption. Other models make room for it, and it for them.",
            search_aliases=["caption", "joycaption", "captioner", "caption model", "joy caption", "llava"],
            inputs=[
                io.Combo.Input("model", options=list(KINDS), default=KINDS[0], optional=True, tooltip="beta-one is the newer and better one. alpha-two knows fewer caption types and options."),
                io.Combo.Input("precision", options=list(PRECISIONS), default="bf16", optional=True, tooltip="bf16 needs about 17 GB of GPU memory, int8 10, nf4 7 (both made from the bf16 files while loading; they need the package bitsandbytes), fp32 34. A quantised folder keeps its own precision."),
                io.String.Input(
                    "local_folder", default="", optional=True, placeholder="empty: models/LLM, or download",
                    tooltip="A JoyCaption folder that you already have: its name in models/LLM, or its path. Works for quantised ones (nf4, fp8) too. Empty: models/LLM is searched, then Hugging Face asked.",
                    **ADVANCED,
                ),
            ],
            outputs=[Captioner.Output("captioner", display_name="captioner", tooltip="For Caption Dataset. Nothing is loaded yet.")],
        )

    @classmethod
    def validate_inputs(cls, local_folder=None):
        return problem(folders.captioner_folder, (local_folder or "").strip() or None)

    @classmethod
    def execute(cls, model=KINDS[0], precision="bf16", local_folder="") -> io.NodeOutput:
        folder = folders.captioner_folder(local_folder) if local_folder.strip() else None
        return io.NodeOutput(captioning.JoyCaptionChoice(version=model, precision=precision, folder=folder))


class CaptionOptionsNode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioCaptionOptions",
            display_name="Caption Options",
            category="Pistachio/caption",
            description="Sentences that are added to JoyCaption's prompt, word for word as it was trained on them. The ones that are on suit a character.",
            search_aliases=["caption", "joycaption", "joycaption extra options"],
            inputs=[
                io.Boolean.Input(
                    name, default=number in CHARACTER_OPTIONS, optional=True,
                    tooltip=EXTRA_OPTIONS[number] + (" (beta-one only)" if number > 17 else ""), **({} if number in CHARACTER_OPTIONS else ADVANCED),
                )
                for number, name in OPTION_INPUTS.items()
            ],
            outputs=[CaptionOptions.Output("caption_options", display_name="options", tooltip="For Caption Dataset.")],
        )

    @classmethod
    def execute(cls, **switched) -> io.NodeOutput:
        return io.NodeOutput(tuple(
            number for number, name in OPTION_INPUTS.items() if switched.get(name, number in CHARACTER_OPTIONS)
        ))


class CaptionDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioCaptionDataset",
            display_name="Caption Dataset",
            category="Pistachio/caption",
            description="Captions the pictures that have no caption yet and saves each as a .txt file beside its picture. When all have one, the captioner is not even loaded.",
            search_aliases=["caption", "joycaption", "kohya", "lora", "caption images", "auto caption", "tagger"],
            is_output_node=True,
            inputs=[
                Dataset.Input("dataset", tooltip="From Load Image Folder."),
                Captioner.Input("captioner", tooltip="From Load JoyCaption, Load GGUF Captioner or Captioner from CLIP."),
                CaptionOptions.Input("options", optional=True, tooltip="From Caption Options. Not connected: those that suit a character."),
                io.String.Input(
                    "trigger_word", default="", optional=True, placeholder="e.g. ohwx",
                    tooltip="A rare word that stands for the character, put before every new caption.",
                ),
                io.Combo.Input(
                    "caption_type", options=list(CAPTION_TYPES), default=default(CaptionRequest, "caption_type"), optional=True,
                    tooltip="Straightforward or Descriptive for models that read sentences (Flux, Wan, SD3.5); a tag list for models trained on tags.",
                ),
                io.Combo.Input(
                    "caption_length", options=list(LENGTHS), default=default(CaptionRequest, "length"), optional=True,
                    tooltip="A length in words, a number of words at most, or 'any'. Short captions suit SD1.5 and SDXL, which read 75 tokens.",
                ),
                io.String.Input("name", default="", optional=True, tooltip="How captions call the character, e.g. Anna. Empty: 'a woman', 'a man' and so on."),
                io.String.Input("prefix", default="", optional=True, tooltip="Fixed words at the beginning of every new caption, after the trigger word.", **ADVANCED),
                io.String.Input("suffix", default="", optional=True, tooltip="Fixed words at the end of every new caption.", **ADVANCED),
                io.String.Input(
                    "custom_prompt", default="", optional=True, multiline=True, placeholder="empty: made from the type, length and options",
                    tooltip="Your own question to JoyCaption. It replaces type, length, name and options.", **ADVANCED,
                ),
                io.Int.Input("batch_size", default=8, optional=True, min=1, max=64, tooltip="Pictures at a time. 8 is fast on 32 GB; 2 to 4 on 24 GB. It is halved when the GPU's memory is too small.", **ADVANCED),
                io.Int.Input("max_new_tokens", default=300, optional=True, min=16, max=2048, tooltip="Longest caption in tokens, about 1.3 a word. A caption that is cut off is tried once more, and not saved if it is cut off again.", **ADVANCED),
                io.Float.Input("temperature", default=0.6, optional=True, min=0.0, max=2.0, step=0.05, tooltip="0 always gives the likeliest words; 0.6 is usual.", **ADVANCED),
                io.Float.Input("top_p", default=0.9, optional=True, min=0.05, max=1.0, step=0.05, tooltip="Only the likeliest words that together have this probability are drawn from.", **ADVANCED),
                io.Int.Input("seed", default=0, optional=True, min=0, max=2**53 - 1, control_after_generate=False, tooltip="Another seed gives other captions.", **ADVANCED),
                io.Boolean.Input("overwrite", default=False, optional=True, tooltip="On: caption every picture anew and replace its caption file. Off: captions that are there are kept."),
                io.Boolean.Input("overwrite_edited", default=False, optional=True, tooltip="With overwrite: replace also captions that were changed by hand since they were written here. The old text stays in the folder's history.", **ADVANCED),
                io.Boolean.Input("free_after", default=True, optional=True, tooltip="On: give the captioner's memory back after the last picture. Off: it stays loaded for the next captions until another model needs the room.", **ADVANCED),
            ],
            outputs=[
                Dataset.Output("captioned", display_name="dataset", tooltip="The pictures with their captions."),
                io.String.Output("captions", display_name="captions", tooltip="One line a picture: its name and its caption."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls, dataset, captioner, options=CHARACTER_OPTIONS, trigger_word="", caption_type="Straightforward", caption_length="medium-length",
        name="", prefix="", suffix="", custom_prompt="", batch_size=8, max_new_tokens=300, temperature=0.6, top_p=0.9, seed=0, overwrite=False,
        overwrite_edited=False, free_after=True,
    ) -> io.NodeOutput:
        request = CaptionRequest(
            caption_type=caption_type, length=caption_length, options=options, name=name, custom_prompt=custom_prompt,
            temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed,
        )
        result = captioning.caption(
            dataset, captioner, request, prefix=prefix, suffix=suffix, batch_size=batch_size, overwrite=overwrite,
            overwrite_edited=overwrite_edited, free_after=free_after, trigger_word=trigger_word, node_id=cls.hidden.unique_id,
        )
        captions = "\n".join(f"{shown_name(picture.relative_path)}: {picture.caption or ''}" for picture in result.pictures)
        # What the folder said is on Load Image Folder already.
        return io.NodeOutput(result, captions, ui=shown(sentences=(*result.notes[len(dataset.notes):], captions)))
