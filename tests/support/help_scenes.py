"""The example graph of each node's help page: what it is connected to, its values, and whether it is run for the picture.

Owns the graphs and the files that they need; `take_help_pictures` draws them.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from demo.captions import TRIGGER
from demo.graph import SAMPLER
from demo.install import CLIP_NAME, DIT_NAME, VAE_NAME

NUM_STEPS = 160
SIZE_PX = 96  # of the demo's portraits
DRAWN = {"steps": SAMPLER["steps"], "cfg": SAMPLER["cfg"]}
DEMO_SCENE = "woman, happy, red shirt, blue background, close-up"
GGUF = "joycaption-gguf/llama-joycaption-beta-one-hf-llava-q4_k.gguf"
MMPROJ = "joycaption-gguf/llama-joycaption-beta-one-llava-mmproj-model-f16.gguf"
SKIN = 0xBE7E54  # of the demo's character: its mask is the face
FRIENDS = (  # captions as a captioner writes them, with what Caption Rules takes out
    "A woman with long green hair and blue eyes, looking sad, wearing a yellow shirt, in front of a yellow wall.",
    "A woman with green pigtails, looking sad, wearing a black shirt, in front of a green wall.",
    "A smiling woman with green hair and brown skin, wearing a blue shirt, in front of a blue wall.",
    "A woman with green pigtails and blue eyes, laughing, wearing a black shirt, in front of a yellow wall.",
    "A woman with green hair, smiling, wearing a red shirt, in front of a green wall.",
    "A cheerful woman with blue eyes, wearing a white shirt, in front of a yellow wall.",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A node that others take from."""

    type: str
    takes: dict[str, str] = field(default_factory=dict)  # input -> "part" or "part:output number"
    values: dict = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    size: tuple[int, int] = (320, 200)
    takes: dict[str, str] = field(default_factory=dict)
    gives: tuple = ()  # output number, type of the node that takes it, its input, and that node's values
    values: dict = field(default_factory=dict)
    first: str = ""  # a part that is run before, on its own
    runs: bool = False
    settle_ms: int = 1500
    room_px: int = 34  # beside the nodes, for the links
    open: dict[str, tuple[int, int, int, int]] = field(default_factory=dict)  # neighbours that are drawn open: left, top, width, height


PARTS = {
    "model": Part(type="UNETLoader", values={"unet_name": DIT_NAME, "weight_dtype": "default"}),
    "clip": Part(type="CLIPLoader", values={"clip_name": CLIP_NAME, "type": "sd3"}),
    "vae": Part(type="VAELoader", values={"vae_name": VAE_NAME}),
    "photo": Part(type="LoadImage", values={"image": "portrait.png"}),
    "folder": Part(type="PistachioLoadImageFolder", values={"folder": "my_character"}),
    "friends": Part(type="PistachioLoadImageFolder", values={"folder": "my_friend"}),
    "rewritten": Part(
        type="PistachioCaptionRules", takes={"dataset": "friends"}, values={"trigger_word": "ohwx", "class_noun": "woman", "filter_leaks": True, "write": True}
    ),
    "joycaption": Part(type="PistachioLoadJoyCaption"),
    "options": Part(type="PistachioCaptionOptions"),
    "split": Part(type="PistachioSplitDataset", takes={"dataset": "folder"}),
    "pictures": Part(type="PistachioDatasetImages", takes={"dataset": "folder"}),
    "larger": Part(type="ImageScaleBy", takes={"image": "pictures"}, values={"upscale_method": "lanczos", "scale_by": 4.0}),
    "portraits": Part(type="PistachioLoadImageFolder", values={"folder": "my_portraits"}),  # crops are written into it
    "portrait_images": Part(type="PistachioDatasetImages", takes={"dataset": "portraits"}),
    "faces": Part(type="ImageColorToMask", takes={"image": "portrait_images"}, values={"color": SKIN}),
    "encoded": Part(
        type="PistachioEncodeDataset", takes={"dataset": "split", "vae": "vae", "clip": "clip"}, values={"trigger_word": TRIGGER, "resolution": SIZE_PX}
    ),
    "adapter": Part(type="PistachioAdapterSettings"),
    "optimizer": Part(type="PistachioOptimizerSettings", values={"learning_rate": 1e-3}),
    "evaluation": Part(type="PistachioEvaluationSettings"),
    "objective": Part(type="PistachioObjectiveSettings", values={"timestep_distribution": "logit-normal"}),
    "trained": Part(
        type="PistachioTrainLora", takes={"model": "model", "encoded": "encoded", "adapter": "adapter", "optimizer": "optimizer"},
        values={"run_name": "my_character", "num_steps": NUM_STEPS, "batch_size": 4},
    ),
}
FOR_TRAINING = "PistachioTrainLora"
SCENES = {
    "PistachioTrainLora": Scene(
        size=(430, 760), runs=True, settle_ms=4000, takes=dict(PARTS["trained"].takes), values=dict(PARTS["trained"].values),
        gives=((1, "LoraLoaderModelOnly", "lora_name"), (2, "PistachioSelectCheckpoint", "run")),
    ),
    "PistachioLoadImageFolder": Scene(size=(320, 420), runs=True, values={"folder": "my_character"}, gives=((0, "PistachioCaptionDataset", "dataset"),)),
    "PistachioLoadVideoFolder": Scene(
        size=(320, 400), runs=True, values={"folder": "my_clips", "frame_buckets": "17, 33"}, gives=((0, "PistachioCaptionDataset", "dataset"),)
    ),
    "PistachioCharacterSheet": Scene(
        size=(330, 640), runs=True, room_px=60, takes={"image": "photo"},
        values={"trigger_word": "ohwx", "class_noun": "woman", "subject": "the woman with green pigtails"},
        gives=((0, "CLIPTextEncode", "text"), (2, "KSampler", "seed"), (5, "PistachioSaveToDataset", "sheet")),
    ),
    "PistachioSaveToDataset": Scene(
        size=(320, 400), runs=True, takes={"images": "larger", "captions": "pictures:1"}, values={"folder": "my_set", "name": "portrait"},
        gives=((0, "PistachioReviewDataset", "dataset"),),
    ),
    "PistachioLoadJoyCaption": Scene(size=(320, 130), gives=((0, "PistachioCaptionDataset", "captioner"),)),
    "PistachioLoadGGUFCaptioner": Scene(size=(360, 180), values={"model": GGUF, "mmproj": MMPROJ}, gives=((0, "PistachioCaptionDataset", "captioner"),)),
    "PistachioCaptionerFromClip": Scene(size=(280, 60), takes={"clip": "clip"}, gives=((0, "PistachioCaptionDataset", "captioner"),)),
    "PistachioCaptionOptions": Scene(size=(320, 200), gives=((0, "PistachioCaptionDataset", "options"),)),
    "PistachioCaptionDataset": Scene(
        size=(340, 400), runs=True, takes={"dataset": "folder", "captioner": "joycaption", "options": "options"}, values={"trigger_word": TRIGGER},
        gives=((0, "PistachioReviewDataset", "dataset"),),
    ),
    "PistachioCaptionRules": Scene(
        size=(340, 560), runs=True, takes={"dataset": "friends"}, values={"trigger_word": "ohwx", "class_noun": "woman", "filter_leaks": True},
        gives=((0, "PistachioReviewDataset", "dataset"),),
    ),
    "PistachioCaptionHistory": Scene(
        size=(340, 220), first="rewritten", runs=True, takes={"dataset": "friends"}, gives=((0, "PistachioReviewDataset", "dataset"),)
    ),
    "PistachioCheckTrigger": Scene(
        size=(340, 620), runs=True, takes={"clip": "clip", "dataset": "folder", "model": "model", "vae": "vae"},
        values={"trigger_word": TRIGGER, "prompt": f"[trigger] {DEMO_SCENE}", "num_steps": 10, "cfg": 3.0, "size": SIZE_PX},
        gives=((0, "PistachioCaptionDataset", "trigger_word"),),
    ),
    "PistachioReviewDataset": Scene(
        size=(460, 600), runs=True, settle_ms=4000, takes={"dataset": "folder"}, values={"resolution": SIZE_PX}, gives=((0, "PistachioSplitDataset", "dataset"),)
    ),
    "PistachioDatasetImages": Scene(
        size=(300, 100), takes={"dataset": "folder"}, gives=((0, "ImageScaleBy", "image"), (1, "PistachioSaveToDataset", "captions"))
    ),
    "PistachioCropSubjects": Scene(
        size=(330, 560), runs=True, takes={"dataset": "portraits", "masks": "faces"}, values={"marked": "face", "minimum_size": 32},
        gives=((0, "PistachioSplitDataset", "dataset"),),
    ),
    "PistachioSplitDataset": Scene(size=(320, 420), runs=True, takes={"dataset": "folder"}, gives=((0, "PistachioEncodeDataset", "dataset"),)),
    "PistachioCheckDataset": Scene(
        size=(380, 860), runs=True, takes={"dataset": "split", "model": "model"}, values={"trigger_word": TRIGGER, "class_noun": "woman", "resolution": SIZE_PX},
        gives=((0, "PistachioEncodeDataset", "dataset"),),
    ),
    "PistachioBuildPrompts": Scene(
        size=(340, 420), runs=True, takes={"dataset": "folder"}, values={"trigger_word": TRIGGER, "class_noun": "woman", "prompts": 4},
        gives=((1, "PistachioSampleSettings", "prompts"),),
    ),
    "PistachioEncodeDataset": Scene(
        size=(320, 260), runs=True, takes={"dataset": "split", "vae": "vae", "clip": "clip"}, values={"trigger_word": TRIGGER, "resolution": SIZE_PX},
        gives=((0, FOR_TRAINING, "encoded"),),
    ),
    "PistachioAugmentationSettings": Scene(size=(320, 260), values={"flip": True, "random_crops": 2}, gives=((0, "PistachioEncodeDataset", "augmentation"),)),
    "PistachioQuantizeBase": Scene(
        size=(340, 380), runs=True, takes={"model": "model"}, gives=((0, FOR_TRAINING, "model"), (0, "KSampler", "model")),
    ),
    "PistachioAdapterSettings": Scene(size=(320, 160), gives=((0, FOR_TRAINING, "adapter"),)),
    "PistachioOptimizerSettings": Scene(size=(320, 160), gives=((0, FOR_TRAINING, "optimizer"),)),
    "PistachioObjectiveSettings": Scene(size=(320, 160), gives=((0, FOR_TRAINING, "objective"), (0, "PistachioTimestepPlot", "objective"))),
    "PistachioEvaluationSettings": Scene(size=(320, 160), gives=((0, FOR_TRAINING, "evaluation"),)),
    "PistachioLoggingSettings": Scene(size=(320, 160), values={"wandb": "offline", "tags": "anna, sdxl", "tensorboard": True}, gives=((0, FOR_TRAINING, "logging"),)),
    "PistachioSampleSettings": Scene(
        size=(330, 300), takes={"clip": "clip", "vae": "vae"},
        values={"prompts": "[trigger], close-up portrait, soft light\n[trigger] in a park, full body", "every_evaluations": 2},
        gives=((0, FOR_TRAINING, "samples"),),
    ),
    "PistachioMemorySettings": Scene(size=(320, 160), values={"card": "24 GB"}, gives=((0, FOR_TRAINING, "memory"),)),
    "PistachioTimestepPlot": Scene(size=(340, 420), runs=True, takes={"model": "model", "objective": "objective"}, gives=((0, "SaveImage", "images"),)),
    "PistachioKernelReport": Scene(size=(340, 240), runs=True, settle_ms=2500, gives=((0, "PreviewAny", "source"),)),
    "PistachioPlanTraining": Scene(
        size=(330, 140), runs=True, takes={"model": "model", "dataset": "split"},
        gives=((1, "PistachioEncodeDataset", "resolution"), (0, FOR_TRAINING, "run_name")),
    ),
    "PistachioSelectCheckpoint": Scene(size=(330, 260), runs=True, takes={"run": "trained:2"}, gives=((0, "LoraLoaderModelOnly", "lora_name"),)),
    "PistachioLossChart": Scene(size=(380, 420), runs=True, takes={"run": "trained:2"}, gives=((0, "SaveImage", "images"),)),
    "PistachioCheckpointGrid": Scene(
        size=(380, 620), runs=True, takes={"run": "trained:2", "model": "model", "clip": "clip", "vae": "vae"},
        values={"prompts": f"{TRIGGER} {DEMO_SCENE}", "num_seeds": 2, "with_base": True, **DRAWN}, gives=((0, "SaveImage", "images"),),
    ),
    "PistachioTestSheet": Scene(
        size=(380, 640), runs=True, takes={"run": "trained:2", "model": "model", "clip": "clip", "vae": "vae"},
        values={
            "scenes": f"{DEMO_SCENE}\nwoman, sad, yellow shirt, green background, close-up\nwoman, surprised, white shirt, pink background, portrait", **DRAWN,
            "negative_prompt": "",
        },
        gives=((0, "SaveImage", "images"),),
    ),
    "PistachioLoadRun": Scene(
        size=(300, 70), first="trained", values={"run": "my_character"}, gives=((0, "PistachioLossChart", "run"), (0, "PistachioSelectCheckpoint", "run"))
    ),
}


def prepare(base: Path, portraits: Path) -> None:
    """Files that the examples name: the demo's portraits under several names, short clips of them, an empty file where a node only lists it."""
    for name in (GGUF, MMPROJ):
        path = base / "models" / "LLM" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for folder in ("my_character", "my_portraits"):
        shutil.rmtree(base / "input" / folder, ignore_errors=True)
        shutil.copytree(portraits, base / "input" / folder)
    pictures = sorted(portraits.glob("*.png"))
    Image.open(pictures[4]).resize((384, 384), Image.Resampling.LANCZOS).save(base / "input" / "portrait.png")
    for folder in ("my_friend", "my_set"):
        shutil.rmtree(base / "input" / folder, ignore_errors=True)
    (base / "input" / "my_friend").mkdir()
    for number, (picture, caption) in enumerate(zip(pictures, FRIENDS), 1):
        shutil.copy(picture, base / "input" / "my_friend" / f"friend {number}.png")
        (base / "input" / "my_friend" / f"friend {number}.txt").write_text(caption, encoding="utf-8")
    if not (base / "input" / "my_clips").exists():
        (base / "input" / "my_clips").mkdir()
        for number, picture in enumerate(pictures[:6], 1):
            _clip(picture, base / "input" / "my_clips" / f"clip {number}.mp4", frames=20 if number % 3 == 0 else 40)
            (base / "input" / "my_clips" / f"clip {number}.txt").write_text("ohwx woman, waving", encoding="utf-8")


def _clip(picture: Path, target: Path, *, frames: int) -> None:
    """The portrait, coming nearer, at 16 frames a second."""
    import av

    large = Image.open(picture).convert("RGB").resize((320, 320), Image.Resampling.LANCZOS)
    with av.open(str(target), "w") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width = stream.height = 256
        stream.pix_fmt = "yuv420p"
        for index in range(frames):
            edge = index * 32 // frames
            frame = large.crop((edge, edge, 320 - edge, 320 - edge)).resize((256, 256))
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
