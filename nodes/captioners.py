"""Other captioners than JoyCaption through transformers: GGUF files, and models that ComfyUI loads by itself."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge import captioning, folders
from ..bridge.host_captioner import check_vision_language
from ..dataset.joycaption.prompts import KINDS
from .schema import ADVANCED, Captioner, problem, schema

NO_FILES = "(no .gguf file in models/LLM)"
BESIDE = "(the one beside the model)"


def _pair(choice: tuple[str, str]):
    model, projector = choice
    return folders.gguf_pair(model, "" if projector == BESIDE else projector)


class LoadGGUFCaptioner(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        names = folders.gguf_files()
        return schema(
            node_id="PistachioLoadGGUFCaptioner",
            display_name="Load GGUF Captioner",
            category="Pistachio/caption",
            description="JoyCaption as GGUF files (5 to 9 GB), through llama-cpp-python. Loaded only when a picture needs a caption. Slower than Load JoyCaption: one picture at a time.",
            search_aliases=["caption", "joycaption", "llama.cpp", "joycaption gguf", "quantized captioner", "mmproj"],
            inputs=[
                io.Combo.Input(
                    "model", options=[name for name in names if not folders.is_projector(name)] or [NO_FILES], optional=True,
                    tooltip="The language model, a .gguf file in models/LLM or a folder in it. Press R on the canvas to see new files.",
                ),
                io.Combo.Input(
                    "mmproj", options=[BESIDE, *(name for name in names if folders.is_projector(name))], default=BESIDE, optional=True,
                    tooltip="The vision part of the same model, a file with 'mmproj' in its name.",
                ),
                io.Combo.Input("version", options=["auto", *KINDS], default="auto", optional=True, tooltip="Which JoyCaption it is. auto: as the file's name says.", **ADVANCED),
                io.Int.Input("context_length", default=4096, optional=True, min=1024, max=131072, step=256, tooltip="Tokens that picture, prompt and caption may have together. 4096 is ample for captions; more needs more memory.", **ADVANCED),
                io.Int.Input("gpu_layers", default=-1, optional=True, min=-1, max=1000, tooltip="How many of the model's layers are put on the GPU. -1: all. 0: none, on the CPU. Fewer need less GPU memory and are slower.", **ADVANCED),
            ],
            outputs=[Captioner.Output("captioner", display_name="captioner", tooltip="For Caption Dataset. Nothing is loaded yet.")],
        )

    @classmethod
    def validate_inputs(cls, model=None, mmproj=BESIDE):
        return problem(_pair, None if model is None or mmproj is None else (model, mmproj))

    @classmethod
    def execute(cls, model=NO_FILES, mmproj=BESIDE, version="auto", context_length=4096, gpu_layers=-1) -> io.NodeOutput:
        model_file, projector_file = _pair((model, mmproj))
        return io.NodeOutput(captioning.GgufChoice(
            model_file=model_file, projector_file=projector_file, version=version, context_length=context_length, gpu_layers=gpu_layers,
        ))


class CaptionerFromClip(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioCaptionerFromClip",
            display_name="Captioner from CLIP",
            category="Pistachio/caption",
            description="Takes a vision-language model that ComfyUI itself loads (Qwen3-VL, Qwen3.5, Gemma) as the captioner: nothing else is downloaded, and its memory is ComfyUI's own.",
            search_aliases=["caption", "joycaption", "vlm", "qwen vl", "gemma", "vision language", "host captioner"],
            inputs=[io.Clip.Input("clip", tooltip="From Load CLIP, with a file of a model that writes text and sees pictures. ComfyUI after 0.3.75.")],
            outputs=[Captioner.Output("captioner", display_name="captioner", tooltip="For Caption Dataset.")],
        )

    @classmethod
    def execute(cls, clip) -> io.NodeOutput:
        check_vision_language(clip)
        return io.NodeOutput(captioning.HostChoice(clip=clip))
