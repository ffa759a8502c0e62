"""Writes workflows/*.json and subgraphs/*.json: `python build_workflows.py http://127.0.0.1:8188`, with a ComfyUI that has the pack running there.

Owns what each bundled workflow and blueprint holds, says and looks like; `graph` owns the format.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORE_VERSION = "0.3.75"  # the oldest ComfyUI that the workflows open in
HUB = "https://huggingface.co"
TRIGGER = "ohwx"
NEGATIVE = "blurry, lowres, bad anatomy, watermark, text"
GREEN, BLUE, BROWN, PURPLE = "#3f5a2f", "#2f4a5f", "#6a5130", "#4f3a5f"
TITLE_PX = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    name: str
    directory: str
    url: str  # the folder on the hub

    @property
    def model(self) -> dict:
        return {"name": self.name, "url": f"{HUB}/{self.url}/{self.name}", "directory": self.directory}


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    key: str
    title: str
    resolution: int
    caption_length: str
    size: tuple[int, int]  # of the generated picture
    sampler: dict
    about: str
    latent: str = "EmptyLatentImage"
    checkpoint: File | None = None
    network: File | None = None
    text_encoders: tuple[File, ...] = ()
    clip_type: str = ""
    vae: File | None = None
    negative: str = NEGATIVE


WAN = "Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
FLUX_TEXT = "comfyanonymous/flux_text_encoders/resolve/main"
QWEN = "Comfy-Org/Qwen-Image_ComfyUI/resolve/main/split_files"
QWEN_EDIT = "Comfy-Org/Qwen-Image-Edit_ComfyUI/resolve/main/split_files"

FAMILIES = (
    Family(
        key="sd15", title="SD 1.5", resolution=512, caption_length="short", size=(512, 640),
        sampler={"steps": 25, "cfg": 7.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"},
        checkpoint=File(
            name="v1-5-pruned-emaonly-fp16.safetensors", directory="checkpoints",
            url="Comfy-Org/stable-diffusion-v1-5-archive/resolve/main",
        ),
        about="Small and quick: trains on 6 GB of GPU memory. A fine-tuned SD 1.5 checkpoint of your own works just as well.",
    ),
    Family(
        key="sdxl", title="SDXL", resolution=1024, caption_length="short", size=(896, 1152),
        sampler={"steps": 28, "cfg": 6.0, "sampler_name": "dpmpp_2m", "scheduler": "karras"},
        checkpoint=File(
            name="sd_xl_base_1.0.safetensors", directory="checkpoints", url="stabilityai/stable-diffusion-xl-base-1.0/resolve/main",
        ),
        about="Any SDXL checkpoint will do. Train on the one that you generate with.",
    ),
    Family(
        key="sd35", title="SD 3.5 Medium", resolution=1024, caption_length="medium-length", size=(896, 1152),
        sampler={"steps": 28, "cfg": 4.5, "sampler_name": "dpmpp_2m", "scheduler": "sgm_uniform"}, latent="EmptySD3LatentImage",
        checkpoint=File(
            name="sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors", directory="checkpoints",
            url="Comfy-Org/stable-diffusion-3.5-fp8/resolve/main",
        ),
        about="One file holds the model, its three text encoders and the VAE.",
    ),
    Family(
        key="flux", title="Flux.1 dev", resolution=1024, caption_length="medium-length", size=(896, 1152),
        sampler={"steps": 20, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}, latent="EmptySD3LatentImage",
        network=File(name="flux1-dev.safetensors", directory="diffusion_models", url="Comfy-Org/flux1-dev/resolve/main"),
        text_encoders=(
            File(name="clip_l.safetensors", directory="text_encoders", url=FLUX_TEXT),
            File(name="t5xxl_fp16.safetensors", directory="text_encoders", url=FLUX_TEXT),
        ),
        clip_type="flux",
        vae=File(name="ae.safetensors", directory="vae", url="Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae"),
        about="24 GB of weights in bf16. On a smaller card choose **fp8_e4m3fn** as weight_dtype and 768 as resolution.", negative="",
    ),
    Family(
        key="wan21", title="Wan 2.1", resolution=512, caption_length="medium-length", size=(480, 832),
        sampler={"steps": 30, "cfg": 6.0, "sampler_name": "uni_pc", "scheduler": "simple"}, latent="EmptyHunyuanLatentVideo",
        network=File(name="wan2.1_t2v_1.3B_fp16.safetensors", directory="diffusion_models", url=f"{WAN}/diffusion_models"),
        text_encoders=(File(name="umt5_xxl_fp8_e4m3fn_scaled.safetensors", directory="text_encoders", url=f"{WAN}/text_encoders"),),
        clip_type="wan",
        vae=File(name="wan_2.1_vae.safetensors", directory="vae", url=f"{WAN}/vae"),
        about="The character is learned from still pictures; the model brings the motion. The 14B model trains in the same graph: choose "
        f"[wan2.1_t2v_14B_fp16]({HUB}/{WAN}/diffusion_models/wan2.1_t2v_14B_fp16.safetensors) in the loader.",
        negative="blurry, static, watermark, text, worst quality",
    ),
)


# ---- parts of a workflow, from left to right ----------------------------------------------------------------------


def pictures(graph, family: Family, *, note: str, x: int = 0):
    """Folder, captioner, captions, split; the dataset."""
    graph.note((x, 0), (340, 280), note, title="Read me")
    (dataset,) = graph.add("PistachioLoadImageFolder", (x, 330), (340, 450), folder="my_character")
    (captioner,) = graph.add("PistachioLoadJoyCaption", (x + 390, 0), (360, 130))
    captioned, _ = graph.add(
        "PistachioCaptionDataset", (x + 390, 190), (360, 590), dataset=dataset, captioner=captioner, trigger_word=TRIGGER,
        caption_length=family.caption_length,
    )
    (split,) = graph.add("PistachioSplitDataset", (x + 800, 0), (340, 580), dataset=captioned)
    graph.note((x + 800, 630), (340, 150), SPLIT_NOTE, title="Why some are held out")
    graph.group("1  Pictures and captions", (x - 30, -110, 1200, 960), GREEN)
    return split


def loaders(graph, family: Family, *, x: int):
    """MODEL, CLIP and VAE."""
    if family.checkpoint is not None:
        file = family.checkpoint
        return graph.add("CheckpointLoaderSimple", (x, 0), (360, 100), ckpt_name=file.name, models=(file.model,))
    network, vae_file, encoders = family.network, family.vae, family.text_encoders
    (model,) = graph.add("UNETLoader", (x, 0), (360, 90), unet_name=network.name, weight_dtype="default", models=(network.model,))
    names = {f"clip_name{index}": file.name for index, file in enumerate(encoders, 1)} if len(encoders) > 1 else {"clip_name": encoders[0].name}
    loader = "DualCLIPLoader" if len(encoders) > 1 else "CLIPLoader"
    (clip,) = graph.add(
        loader, (x, 150), (360, 140), type=family.clip_type, models=tuple(file.model for file in encoders), **names,
    )
    (vae,) = graph.add("VAELoader", (x, 345), (360, 70), vae_name=vae_file.name, models=(vae_file.model,))
    return model, clip, vae


def encoded_set(graph, family: Family, dataset, *, x: int):
    """The base model's group: loaders and the encoded dataset."""
    model, clip, vae = loaders(graph, family, x=x)
    is_one_file = family.checkpoint is not None
    top, height = (160, 230) if is_one_file else (465, 220)
    (encoded,) = graph.add(
        "PistachioEncodeDataset", (x, top), (360, height), dataset=dataset, vae=vae, clip=clip, resolution=family.resolution,
    )
    words = f"**{family.title}.** {family.about}" + (f"\n\n{BASE_NOTE}" if is_one_file else "")
    graph.note((x, top + height + 45), (360, 200 if is_one_file else 115), words, title="The base model")
    graph.group("2  Base model", (x - 30, -110, 420, 960), BLUE)
    return model, clip, vae, encoded


def training(graph, model, encoded, *, x: int, run_name: str, run=None):
    """Settings and the train node; its lora_name."""
    (adapter,) = graph.add("PistachioAdapterSettings", (x, 0), (320, 135))
    (evaluation,) = graph.add("PistachioEvaluationSettings", (x, 555), (320, 160))
    (optimizer,) = graph.add("PistachioOptimizerSettings", (x + 370, 0), (320, 490))
    trained = graph.add(
        "PistachioTrainLora", (x + 740, 0), (520, 980), model=model, encoded=encoded, adapter=adapter, optimizer=optimizer,
        evaluation=evaluation, run_name=run_name, **({"continue_run": run} if run else {}),
    )
    graph.group("3  Train", (x - 30, -110, 1320, 1160), BROWN)
    return trained


def generation(graph, family: Family, model, clip, vae, lora_name, *, x: int):
    """A stock graph that generates with the LoRA."""
    (model,) = graph.add("LoraLoaderModelOnly", (x, 0), (340, 90), model=model, lora_name=lora_name, strength_model=1.0)
    (positive,) = graph.add("CLIPTextEncode", (x, 150), (340, 150), clip=clip, text=f"{TRIGGER}, portrait photo of a person in a garden, soft light", title="Prompt, with the trigger word")
    (negative,) = graph.add("CLIPTextEncode", (x, 360), (340, 120), clip=clip, text=family.negative, title="Negative prompt")
    width, height = family.size
    clip_length = {"length": 33} if family.latent == "EmptyHunyuanLatentVideo" else {}
    (latent,) = graph.add(family.latent, (x, 540), (340, 140), width=width, height=height, batch_size=1, **clip_length)
    if family.key == "flux":
        (positive,) = graph.add("FluxGuidance", (x + 390, -10), (320, 60), conditioning=positive, guidance=3.5)
    if family.key == "wan21":
        (model,) = graph.add("ModelSamplingSD3", (x + 390, -10), (320, 60), model=model, shift=8.0)
    (sampled,) = graph.add(
        "KSampler", (x + 390, 110), (320, 270), model=model, positive=positive, negative=negative, latent_image=latent, seed=1, denoise=1.0,
        **family.sampler,
    )
    (images,) = graph.add("VAEDecode", (x + 390, 440), (320, 50), samples=sampled, vae=vae)
    if clip_length:
        graph.add("SaveAnimatedWEBP", (x + 760, 0), (420, 780), images=images, filename_prefix=f"pistachio_{family.key}", fps=16.0, lossless=False, quality=90)
    else:
        graph.add("SaveImage", (x + 760, 0), (420, 780), images=images, filename_prefix=f"pistachio_{family.key}")
    graph.note((x + 390, 550), (320, 180), GENERATE_NOTE, title="Using the LoRA elsewhere")
    graph.group("4  Generate with the result", (x - 30, -110, 1240, 960), PURPLE)


# ---- words --------------------------------------------------------------------------------------------------------

TRAIN_NOTE = """
## A character LoRA, in one graph

1. Put about **20 pictures** of your character into `input/my_character`.
2. Choose the base model in group 2.
3. Press **Run**.

Everything is kept: cancel whenever you like, and Run goes on where it stopped. Captions that are there (a `.txt` beside each picture) are not written again.

`{trigger}` is the trigger word: change it here and in the prompt.
"""

SPLIT_NOTE = """
Every fifth picture is kept out of training. The loss on these shows when the LoRA stops learning the **character** and starts to memorise the **pictures**: the best checkpoint before that is kept.
"""

BASE_NOTE = """
The LoRA is trained on the very MODEL that comes out of this loader. Pictures and captions are encoded once and found again on the next Run.
"""

GENERATE_NOTE = """
The LoRA lies in `models/loras` under the run's name: any LoRA loader takes it.

**loss_chart** and **run** of Train LoRA feed *Loss Chart* and *Select Checkpoint*, for a picture of the curve and for another checkpoint than the chosen one.
"""

FORM_NOTE = """
## One form

**In app mode** (the app button above, ComfyUI from 2026) this graph is a form: folder, base model, trigger word, Run.

**Here** those are the first nodes. Put about 20 pictures of your character into `input/my_character`, choose the checkpoint that you generate with, write a rare word as the trigger and press **Run**.

A base model in parts (model, text encoder and VAE as files of their own, like Flux.1 and Wan 2.1) has a template of its own: *09* and *10 Train a character on ...*

Captions that are there are kept. Size, name, steps and memory are planned; a cancelled run goes on with the next Run.
"""

FORM_END_NOTE = """
Left the base, right the LoRA, from the same noise. The LoRA lies in `models/loras` under the run's name: any LoRA loader takes it. Write other scenes and press **Run**: only the sheet is drawn anew.
"""

CAPTION_NOTE = """
## Captions alone

JoyCaption describes every picture of `input/my_character` and saves a `.txt` file beside it. Read them: what a caption names can be changed by the prompt later; what it leaves out belongs to the character.

The model (about 17 GB) is downloaded at the first picture that has no caption, and freed afterwards.
"""

REVIEW_START_NOTE = """
## From a messy folder to a set

1. Put the pictures into `input/my_character` and press **Run**: JoyCaption describes those that have no caption.
2. Review them in group 2, at any time, also while it runs.
3. Press **Run** again: group 3 says what is still wrong.

The captioner (about 17 GB) is downloaded at the first picture without a caption. Captions that you wrote or corrected are never overwritten.
"""

REVIEW_NOTE = """
Choose **To look at** above the grid: captions that the captioner itself has doubts about. **Enter** edits, **A** accepts. Then **All**: **X** excludes a picture from training, **H** holds it out to measure with.

**Check** finds blur, near-duplicates and more, and the filter shows them. **Ctrl+Z** undoes, tomorrow too. **?** shows all keys. No picture is ever deleted.
"""

AFTER_REVIEW_NOTE = """
Name a caption's *changeable* things: clothes, place, light, expression. Leave out what belongs to the character: it goes to the trigger word `{trigger}`.

Then open a *Train a character* template with the same folder: it takes the captions, exclusions and held-out marks of the review.
"""

CONTINUE_NOTE = """
## Go on with a run

**Load Run** opens a run from `output/pistachio`. Train LoRA goes on from its last step: `num_steps` is the new total; 0 means its planned end where it was stopped before, else half as many again.

Leave the pictures, the base model and the settings as they were: a run with others is another run. Press **R** to see new runs in the menu.
"""


SHEET_NOTE = """
## From one picture to a set

1. Choose **one good picture** of your character: face well lit, nothing before it.
2. Write in `subject` what it shows (*the woman with short black hair*): the face is kept better.
3. Press **Run**. Six pictures are made and saved; Run again for the next six, or set the number beside Run to 4 for all 24.

A cancelled run goes on where it stopped. Edit `outfits` and `backgrounds` as you like; no outfits at all keeps the clothes.
"""

SET_NOTE = """
The pictures lie in `input/my_character`. In **Review Dataset** exclude those that don't look like your character: be strict, a wrong face is learned too. What you delete is not made again.

About **20 good ones** make a set. Then open *Train a character* with the folder `my_character`.
"""

QWEN_NOTE = """
**Qwen-Image-Edit 2509** keeps a person well. 20 GB of weights; with the 4-step Lightning LoRA set steps to 4 and cfg to 1.

**Another model?** For *FLUX.1 Kontext* open the template *Character sheet with Kontext*. For *FLUX.2 Klein* use that template with `edit_model` FLUX.2 and the loaders of ComfyUI's own Klein template (model, `qwen_3_4b` as type flux2, `flux2-vae`), an Empty Flux 2 Latent, 4 steps and cfg 1.
"""

KONTEXT_NOTE = """
**FLUX.1 Kontext dev**, 12 GB in fp8. It keeps a person best when `subject` describes the character.

**FLUX.2 Klein** (newer ComfyUI) in this graph: set `edit_model` to FLUX.2, take the loaders of ComfyUI's own Klein template (model, `qwen_3_4b` as type flux2, `flux2-vae`), put an *Empty Flux 2 Latent* in place of the empty latent, remove FluxGuidance, and set steps to 4.
"""


# ---- the workflows ------------------------------------------------------------------------------------------------


def train_character(graph, family: Family) -> None:
    dataset = pictures(graph, family, note=TRAIN_NOTE.format(trigger=TRIGGER))
    model, clip, vae, encoded = encoded_set(graph, family, dataset, x=1230)
    _, lora_name, *_ = training(graph, model, encoded, x=1680, run_name=f"my_character_{family.key}")
    generation(graph, family, model, clip, vae, lora_name, x=3030)


def one_form(graph) -> None:
    """Everything from a folder to a test sheet; app mode asks for three things of it."""
    graph.note((0, 0), (400, 380), FORM_NOTE, title="Read me")
    (dataset,) = graph.add("PistachioLoadImageFolder", (0, 430), (400, 480), folder="my_character", title="Pictures")
    file = next(family for family in FAMILIES if family.key == "sdxl").checkpoint
    model, clip, vae = graph.add("CheckpointLoaderSimple", (0, 960), (400, 100), ckpt_name=file.name, models=(file.model,), title="Base model")
    graph.group("1  The form", (-30, -110, 460, 1200), GREEN)
    x = 490
    (captioner,) = graph.add("PistachioLoadJoyCaption", (x, 0), (380, 130))
    captioned, _ = graph.add(
        "PistachioCaptionDataset", (x, 190), (380, 870), dataset=dataset, captioner=captioner, trigger_word=TRIGGER, caption_length="short",
        title="Trigger word and captions",
    )
    (split,) = graph.add("PistachioSplitDataset", (x + 430, 0), (340, 560), dataset=captioned)
    name, resolution = graph.add("PistachioPlanTraining", (x + 430, 620), (340, 150), model=model, dataset=split)
    (encoded,) = graph.add("PistachioEncodeDataset", (x + 430, 830), (340, 230), dataset=split, vae=vae, clip=clip, resolution=resolution)
    graph.group("2  Captions and plan", (x - 30, -110, 830, 1200), BLUE)
    x = 1350
    _, _, run, *_ = graph.add("PistachioTrainLora", (x, 0), (620, 1060), model=model, encoded=encoded, run_name=name)
    graph.group("3  Train", (x - 30, -110, 680, 1200), BROWN)
    x = 2060
    (sheet,) = graph.add("PistachioTestSheet", (x, 0), (400, 600), run=run, model=model, clip=clip, vae=vae)
    graph.note((x, 650), (400, 200), FORM_END_NOTE, title="The sheet")
    graph.add("SaveImage", (x + 450, 0), (700, 1060), images=sheet, filename_prefix="pistachio/test_sheet")
    graph.results.append(len(graph.nodes))
    graph.group("4  Test sheet", (x - 30, -110, 1210, 1200), PURPLE)
    graph.ask(dataset, "folder", "About 20 of one character", label="folder of pictures")
    graph.ask(model, "ckpt_name", "One file. Flux, Wan: own templates", label="base model")
    graph.ask(captioned, "trigger_word", "A rare word for the character", label="trigger word")
    graph.ask(run, "live", "While it trains")


def caption_and_review_node(graph) -> None:
    """A folder and a trigger word in, a reviewed dataset out."""
    folder, trigger = graph.take("folder", "STRING"), graph.take("trigger_word", "STRING")
    (dataset,) = graph.add("PistachioLoadImageFolder", (0, 0), (360, 480), folder=folder)
    (captioner,) = graph.add("PistachioLoadJoyCaption", (0, 540), (360, 130))
    captioned, _ = graph.add("PistachioCaptionDataset", (410, 0), (380, 870), dataset=dataset, captioner=captioner, trigger_word=trigger)
    (reviewed,) = graph.add("PistachioReviewDataset", (840, 0), (760, 870), dataset=captioned, trigger_word=trigger)
    graph.give("dataset", reviewed)


def train_and_choose_node(graph) -> None:
    """A model and a captioned dataset in; the model with the LoRA of the best step, or of the one that you name, out."""
    model, clip, vae = graph.take("model", "MODEL"), graph.take("clip", "CLIP"), graph.take("vae", "VAE")
    dataset, step = graph.take("dataset", "PISTACHIO_DATASET"), graph.take("step", "INT")
    (split,) = graph.add("PistachioSplitDataset", (0, 0), (340, 560), dataset=dataset)
    name, resolution = graph.add("PistachioPlanTraining", (0, 620), (340, 150), model=model, dataset=split)
    (encoded,) = graph.add("PistachioEncodeDataset", (390, 0), (340, 230), dataset=split, vae=vae, clip=clip, resolution=resolution)
    _, _, run, chart, _ = graph.add("PistachioTrainLora", (780, 0), (560, 1060), model=model, encoded=encoded, run_name=name)
    lora_name, _, _ = graph.add("PistachioSelectCheckpoint", (1390, 0), (340, 230), run=run, step=step)
    (trained,) = graph.add("LoraLoaderModelOnly", (1390, 290), (340, 90), model=model, lora_name=lora_name, strength_model=1.0)
    graph.add("PistachioCheckpointGrid", (1390, 440), (400, 620), run=run, model=model, clip=clip, vae=vae, num_seeds=1, with_base=True)
    for one, output in (("model", trained), ("lora_name", lora_name), ("run", run), ("loss_chart", chart)):
        graph.give(one, output)


@dataclass(frozen=True, kw_only=True, slots=True)
class Blueprint:
    name: str  # of the file, and what the node library shows
    description: str
    aliases: tuple[str, ...]
    build: Callable
    size: tuple[int, int]


BLUEPRINTS = (
    Blueprint(
        name="Caption and review (Pistachio)", build=caption_and_review_node, size=(360, 130),
        description="A folder of pictures in, a captioned and reviewed dataset out: JoyCaption writes what is missing, and the review inside shows every picture with its caption.",
        aliases=("lora", "caption", "joycaption", "review captions", "dataset"),
    ),
    Blueprint(
        name="Train and choose (Pistachio)", build=train_and_choose_node, size=(360, 190),
        description="Trains a LoRA on the model with a captioned dataset, chooses the best step by the held-out pictures and gives the model with it. Write another step to take that one instead; the grid inside compares them.",
        aliases=("lora", "train", "kohya", "character lora", "fine-tune"),
    ),
)


def caption_only(graph) -> None:
    graph.note((0, 0), (360, 330), CAPTION_NOTE, title="Read me")
    (dataset,) = graph.add("PistachioLoadImageFolder", (0, 380), (360, 480), folder="my_character")
    (captioner,) = graph.add("PistachioLoadJoyCaption", (410, 0), (340, 130))
    (options,) = graph.add("PistachioCaptionOptions", (410, 190), (340, 670))
    _, captions = graph.add(
        "PistachioCaptionDataset", (800, 0), (400, 860), dataset=dataset, captioner=captioner, options=options, trigger_word=TRIGGER,
    )
    graph.add("PreviewAny", (1250, 0), (520, 860), source=captions, title="Captions")
    graph.group("Caption a folder", (-30, -110, 1830, 1000), GREEN)


def caption_and_review(graph) -> None:
    graph.note((0, 0), (360, 330), REVIEW_START_NOTE, title="Read me")
    (dataset,) = graph.add("PistachioLoadImageFolder", (0, 380), (360, 480), folder="my_character")
    (captioner,) = graph.add("PistachioLoadJoyCaption", (410, 0), (360, 130))
    captioned, _ = graph.add(
        "PistachioCaptionDataset", (410, 190), (360, 670), dataset=dataset, captioner=captioner, trigger_word=TRIGGER,
    )
    graph.group("1  Pictures and captions", (-30, -110, 830, 1000), GREEN)
    (reviewed,) = graph.add("PistachioReviewDataset", (860, 0), (900, 640), dataset=captioned, trigger_word=TRIGGER)
    graph.note((860, 690), (900, 170), REVIEW_NOTE, title="Reviewing")
    graph.group("2  Review", (830, -110, 960, 1000), BLUE)
    checked, _, _ = graph.add("PistachioCheckDataset", (1850, 0), (520, 860), dataset=reviewed, trigger_word=TRIGGER)
    graph.add("PistachioSplitDataset", (2420, 0), (400, 560), dataset=checked)
    graph.note((2420, 610), (400, 250), AFTER_REVIEW_NOTE.format(trigger=TRIGGER), title="What comes next")
    graph.group("3  Is it ready?", (1820, -110, 1030, 1000), PURPLE)


def continue_run(graph) -> None:
    family = next(family for family in FAMILIES if family.key == "sdxl")
    dataset = pictures(graph, family, note=CONTINUE_NOTE)
    model, clip, vae, encoded = encoded_set(graph, family, dataset, x=1230)
    (run,) = graph.add("PistachioLoadRun", (1680, 775), (320, 55), run="my_character_sdxl")
    _, lora_name, *_ = training(graph, model, encoded, x=1680, run_name="my_character_sdxl", run=run)
    generation(graph, family, model, clip, vae, lora_name, x=3030)


def character_sheet(graph, model: EditModel) -> None:
    """One picture, the prompts of a sheet, an edit model, and the set that comes of it."""
    graph.note((0, 0), (360, 330), SHEET_NOTE, title="Read me")
    image, _ = graph.add("LoadImage", (0, 380), (360, 400), image="example.png", title="The one picture")
    prompt, _, seed, width, height, sheet = graph.add(
        "PistachioCharacterSheet", (410, 0), (440, 780), image=image, folder="my_character", trigger_word=TRIGGER, class_noun="person",
        edit_model=model.wording,
    )
    graph.group("1  One picture, many prompts", (-30, -110, 910, 920), GREEN)
    x = 940
    images = model.build(graph, image, prompt, seed, width, height, x=x)
    graph.group(f"2  The edit model: {model.title}", (x - 30, -110, model.width, 920), BLUE)
    x += model.width + 30
    (dataset,) = graph.add("PistachioSaveToDataset", (x, 0), (400, 480), images=images, sheet=sheet)
    graph.note((x, 530), (400, 250), SET_NOTE, title="Keep and reject")
    (dataset,) = graph.add("PistachioReviewDataset", (x + 450, 0), (440, 780), dataset=dataset, trigger_word=TRIGGER)
    graph.add("PistachioCheckDataset", (x + 940, 0), (440, 780), dataset=dataset, trigger_word=TRIGGER, class_noun="person")
    graph.group("3  The set", (x - 30, -110, 1440, 920), PURPLE)


def qwen_image_edit(graph, image, prompt, seed, width, height, *, x: int):
    network, encoder, vae_file = (
        File(name="qwen_image_edit_2509_fp8_e4m3fn.safetensors", directory="diffusion_models", url=f"{QWEN_EDIT}/diffusion_models"),
        File(name="qwen_2.5_vl_7b_fp8_scaled.safetensors", directory="text_encoders", url=f"{QWEN}/text_encoders"),
        File(name="qwen_image_vae.safetensors", directory="vae", url=f"{QWEN}/vae"),
    )
    (model,) = graph.add("UNETLoader", (x, 0), (360, 90), unet_name=network.name, weight_dtype="default", models=(network.model,))
    (clip,) = graph.add("CLIPLoader", (x, 150), (360, 110), clip_name=encoder.name, type="qwen_image", models=(encoder.model,))
    (vae,) = graph.add("VAELoader", (x, 320), (360, 70), vae_name=vae_file.name, models=(vae_file.model,))
    graph.note((x, 460), (360, 320), QWEN_NOTE, title="The edit model")
    (model,) = graph.add("ModelSamplingAuraFlow", (x + 410, 0), (320, 60), model=model, shift=3.0)
    (model,) = graph.add("CFGNorm", (x + 410, 120), (320, 60), model=model, strength=1.0)
    (scaled,) = graph.add("FluxKontextImageScale", (x + 410, 275), (320, 30), image=image)
    (positive,) = graph.add("TextEncodeQwenImageEditPlus", (x + 410, 365), (320, 180), clip=clip, vae=vae, image1=scaled, prompt=prompt, title="Each prompt of the sheet")
    (negative,) = graph.add("TextEncodeQwenImageEditPlus", (x + 410, 600), (320, 180), clip=clip, vae=vae, image1=scaled, prompt="", title="Negative: empty")
    (latent,) = graph.add("EmptySD3LatentImage", (x + 780, 0), (320, 110), width=width, height=height, batch_size=1)
    (sampled,) = graph.add(
        "KSampler", (x + 780, 170), (320, 270), model=model, positive=positive, negative=negative, latent_image=latent, seed=seed, steps=20, cfg=2.5,
        sampler_name="euler", scheduler="simple", denoise=1.0,
    )
    (images,) = graph.add("VAEDecode", (x + 780, 500), (320, 50), samples=sampled, vae=vae)
    return images


def kontext(graph, image, prompt, seed, width, height, *, x: int):
    network, clip_l, t5, vae_file = (
        File(name="flux1-dev-kontext_fp8_scaled.safetensors", directory="diffusion_models", url="Comfy-Org/flux1-kontext-dev_ComfyUI/resolve/main/split_files/diffusion_models"),
        File(name="clip_l.safetensors", directory="text_encoders", url=FLUX_TEXT),
        File(name="t5xxl_fp8_e4m3fn_scaled.safetensors", directory="text_encoders", url=FLUX_TEXT),
        File(name="ae.safetensors", directory="vae", url="Comfy-Org/Lumina_Image_2.0_Repackaged/resolve/main/split_files/vae"),
    )
    (model,) = graph.add("UNETLoader", (x, 0), (360, 90), unet_name=network.name, weight_dtype="default", models=(network.model,))
    (clip,) = graph.add(
        "DualCLIPLoader", (x, 150), (360, 140), clip_name1=clip_l.name, clip_name2=t5.name, type="flux", models=(clip_l.model, t5.model)
    )
    (vae,) = graph.add("VAELoader", (x, 350), (360, 70), vae_name=vae_file.name, models=(vae_file.model,))
    graph.note((x, 470), (360, 310), KONTEXT_NOTE, title="The edit model")
    (scaled,) = graph.add("FluxKontextImageScale", (x + 410, 0), (320, 30), image=image)
    (reference,) = graph.add("VAEEncode", (x + 410, 90), (320, 50), pixels=scaled, vae=vae)
    (text,) = graph.add("CLIPTextEncode", (x + 410, 200), (320, 150), clip=clip, text=prompt, title="Each prompt of the sheet")
    (positive,) = graph.add("ReferenceLatent", (x + 410, 410), (320, 50), conditioning=text, latent=reference)
    (positive,) = graph.add("FluxGuidance", (x + 410, 520), (320, 60), conditioning=positive, guidance=2.5)
    (negative,) = graph.add("ConditioningZeroOut", (x + 410, 640), (320, 30), conditioning=text)
    (latent,) = graph.add("EmptySD3LatentImage", (x + 780, 0), (320, 110), width=width, height=height, batch_size=1)
    (sampled,) = graph.add(
        "KSampler", (x + 780, 170), (320, 270), model=model, positive=positive, negative=negative, latent_image=latent, seed=seed, steps=20, cfg=1.0,
        sampler_name="euler", scheduler="simple", denoise=1.0,
    )
    (images,) = graph.add("VAEDecode", (x + 780, 500), (320, 50), samples=sampled, vae=vae)
    return images


@dataclass(frozen=True, kw_only=True, slots=True)
class EditModel:
    key: str
    title: str
    wording: str  # edit_model of Character Sheet
    build: Callable
    width: int = 1160  # of its group


EDIT_MODELS = (
    EditModel(key="", title="Qwen-Image-Edit 2509", wording="Qwen-Image-Edit", build=qwen_image_edit),
    EditModel(key="_kontext", title="FLUX.1 Kontext dev", wording="FLUX.1 Kontext", build=kontext),
)

# The template browser shows a file's name as the title; the number puts the list in the order of the work.
TITLES = {
    "one_form": "01 Train a character in one form.app",
    "character_sheet": "02 Character sheet from one picture",
    "character_sheet_kontext": "03 Character sheet with Kontext",
    "caption_only": "04 Caption a folder",
    "caption_and_review": "05 Caption and review",
    "train_character_sd15": "06 Train a character on SD 1.5",
    "train_character_sdxl": "07 Train a character on SDXL",
    "train_character_sd35": "08 Train a character on SD 3.5",
    "train_character_flux": "09 Train a character on Flux.1",
    "train_character_wan21": "10 Train a character on Wan 2.1",
    "continue_run": "11 Continue a run",
}


def bundled(key: str) -> Path:
    return ROOT / "workflows" / f"{TITLES[key]}.json"


WORKFLOWS = {
    "one_form": one_form,
    **{f"train_character_{family.key}": lambda graph, family=family: train_character(graph, family) for family in FAMILIES},
    "caption_only": caption_only,
    "caption_and_review": caption_and_review,
    "continue_run": continue_run,
    **{f"character_sheet{model.key}": lambda graph, model=model: character_sheet(graph, model) for model in EDIT_MODELS},
}


def main(url: str) -> None:
    here = Path(__file__).resolve().parent
    spec = importlib.util.spec_from_file_location("graph", here / "graph.py")
    graph_module = sys.modules["graph"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(graph_module)
    with urllib.request.urlopen(f"{url.rstrip('/')}/object_info") as response:
        object_info = json.load(response)
    version = (ROOT / "version.py").read_text(encoding="utf-8").split('"')[-2]
    for name, build in WORKFLOWS.items():
        graph = graph_module.Graph(object_info=object_info, pack_version=version, core_version=CORE_VERSION)
        build(graph)
        workflow = graph.workflow(workflow_id=str(uuid.uuid5(uuid.NAMESPACE_URL, f"pistachio/{name}")))
        bundled(name).write_text(json.dumps(workflow, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(bundled(name).name, len(workflow["nodes"]), "nodes")
    for blueprint in BLUEPRINTS:
        graph = graph_module.Graph(object_info=object_info, pack_version=version, core_version=CORE_VERSION)
        blueprint.build(graph)
        content = graph.blueprint(
            name=blueprint.name, description=blueprint.description, aliases=blueprint.aliases, category="Pistachio", size=blueprint.size,
        )
        (ROOT / "subgraphs" / f"{blueprint.name}.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        print(blueprint.name, len(graph.nodes), "nodes")


if __name__ == "__main__":
    main(sys.argv[1])
