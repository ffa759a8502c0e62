"""Encoding on the canvas, and what a picture is trained as besides itself."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge import encode
from ..dataset.augmentation import MASK_SOURCES, Augmentation, parse_repeats, parse_resolutions
from ..dataset.cache import LATENT_STORAGE
from ..training.messages import message
from .schema import ADVANCED, SETTINGS, AugmentationSocket, Dataset, Encoded, default, schema
from .shown import shown


class EncodeDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioEncodeDataset",
            display_name="Encode Dataset",
            category="Pistachio/dataset",
            description="Runs every picture through the VAE and every caption through CLIP, once: the results are kept on disk and found again.",
            search_aliases=["lora", "train", "kohya", "cache latents", "encode captions", "aspect buckets"],
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
                io.Combo.Input(
                    "latent_storage", options=list(LATENT_STORAGE), default="lossless", optional=True,
                    tooltip="How latents are kept on disk. lossless: 16 bits where that loses nothing, else 32. bf16 rounds values by up to 0.4 %, fp8 by up to 6 % (a quarter of the size): for very large sets.",
                    **ADVANCED,
                ),
                AugmentationSocket.Input("augmentation", optional=True, tooltip="From Augmentation Settings: crops, mirror images, sizes, repeats, captions and masks. Not connected: each picture as it is."),
            ],
            outputs=[Encoded.Output("encoded", display_name="encoded", tooltip="Latents and encoded captions, ready for Train LoRA.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, dataset, vae, clip, trigger_word="", resolution=1024, allow_missing_captions=False, latent_storage="lossless", augmentation=None) -> io.NodeOutput:
        encoded = encode.encode(
            dataset, vae, clip, trigger_word=trigger_word, resolution=resolution, allow_missing=allow_missing_captions,
            augmentation=augmentation, latent_storage=latent_storage, node_id=cls.hidden.unique_id,
        )
        sizes = sorted({f"{size.width}x{size.height}" for item in encoded.items for size in item.sizes})
        counts = {"train": len(encoded.train), "held_out": len(encoded.held_out), "sizes": ", ".join(sizes)}
        count = message(
            "node.encoded", "{train} pictures to train on, {held_out} held out, trigger word '{trigger}', sizes {sizes}.", trigger=encoded.trigger_word, **counts,
        ) if encoded.trigger_word else message(
            "node.encoded_no_trigger", "{train} pictures to train on, {held_out} held out, no trigger word, sizes {sizes}.", **counts,
        )
        # The nodes before this one show what they said.
        notes = encoded.notes[len(dataset.notes):]
        return io.NodeOutput(encoded, ui=shown(sentences=(count, *_versions(encoded), *notes)))


def _versions(encoded) -> tuple[str, ...]:
    """What augmentation added, in words; nothing when it is off."""
    crops = sum(len(size.latents) for item in encoded.train for size in item.sizes)
    captions = sum(len(item.captions) for item in encoded.train)
    turns = sum(item.repeats for item in encoded.train)
    if (crops, captions, turns) == (len(encoded.train),) * 3 and not encoded.caption_dropout:
        return ()
    counts = {"crops": crops, "captions": captions, "turns": turns}
    if not encoded.caption_dropout:
        return (message("node.versions", "Trained as {crops} crops and {captions} captions; a round has {turns} turns.", **counts),)
    return (message(
        "node.versions_dropout",
        "Trained as {crops} crops and {captions} captions; a round has {turns} turns; {share} of the samples get the empty caption.",
        share=f"{encoded.caption_dropout:.0%}", **counts,
    ),)


class AugmentationSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioAugmentationSettings",
            display_name="Augmentation Settings",
            category=SETTINGS,
            description="What each picture is trained as besides itself: other crops, sizes and captions, with a mask, or more often. Everything is off until you switch it on; held-out pictures are never changed.",
            search_aliases=["lora", "train", "kohya", "flip", "random crop", "repeats", "shuffle tags", "keep tokens", "caption dropout", "mask", "multi resolution"],
            inputs=[
                io.Boolean.Input("flip", default=default(Augmentation, "flip"), optional=True, tooltip="Also train the mirror image of each picture. Off for faces: nobody's face is symmetric."),
                io.Int.Input("random_crops", default=default(Augmentation, "random_crops"), optional=True, min=0, max=64, tooltip="Further crops of each picture at random places. 0: the whole picture alone."),
                io.Float.Input("smallest_crop", default=default(Augmentation, "smallest_crop"), optional=True, min=0.1, max=1.0, step=0.05, tooltip="Smallest random crop, as a share of the picture's sides.", **ADVANCED),
                io.String.Input("more_resolutions", default="", optional=True, placeholder="e.g. 512, 768", tooltip="Train each picture at these sizes too, besides the resolution on Encode Dataset. Pictures that are no larger are not repeated."),
                io.Boolean.Input("folder_repeats", default=default(Augmentation, "folder_repeats"), optional=True, tooltip="Pictures in a subfolder named like '10_closeups' are drawn ten times as often as others."),
                io.String.Input("repeats", default="", optional=True, multiline=True, placeholder="close-up* = 3", tooltip="Lines 'name = times': which pictures are drawn more often. The name may be a pattern such as 'close-up*' or 'faces/*'; the first line that fits counts."),
                io.Boolean.Input("shuffle_tags", default=default(Augmentation, "shuffle_tags"), optional=True, tooltip="Train each caption with its comma-separated tags in other orders too. For lists of tags, not for sentences. The trigger word stays first."),
                io.Int.Input("keep_tokens", default=default(Augmentation, "keep_tokens"), optional=True, min=0, max=1000, tooltip="With shuffle_tags: so many tags after the trigger word keep their place."),
                io.Int.Input("shuffle_variants", default=default(Augmentation, "shuffle_variants"), optional=True, min=1, max=256, tooltip="With shuffle_tags: orders of the tags that are encoded for each caption.", **ADVANCED),
                io.Float.Input("caption_dropout", default=default(Augmentation, "caption_dropout"), optional=True, min=0.0, max=1.0, step=0.05, tooltip="Share of the samples that are trained with the empty caption. The character then also appears without a prompt; 0.05 to 0.1 is usual for styles."),
                io.Combo.Input("masks", options=list(MASK_SOURCES), default=default(Augmentation, "masks"), optional=True, tooltip="file: 'name.mask.png' beside the picture or 'masks/name.png', white is trained. alpha: the picture's own transparency. Pictures without a mask are trained whole."),
                io.Float.Input("mask_minimum", default=default(Augmentation, "mask_minimum"), optional=True, min=0.0, max=1.0, step=0.05, tooltip="Weight of what the mask blacks out: 0 ignores it, 0.1 keeps a little of the background."),
                io.Int.Input("seed", default=default(Augmentation, "seed"), optional=True, min=0, max=2**53 - 1, control_after_generate=False, tooltip="Of the random crops and the orders of the tags.", **ADVANCED),
            ],
            outputs=[AugmentationSocket.Output("settings", display_name="augmentation", tooltip="For Encode Dataset.")],
        )

    @classmethod
    def execute(cls, more_resolutions="", repeats="", **values) -> io.NodeOutput:
        return io.NodeOutput(Augmentation(more_resolutions=parse_resolutions(more_resolutions), repeats=parse_repeats(repeats), **values))
