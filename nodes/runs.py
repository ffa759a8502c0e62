"""Runs on the canvas: open one, look at its curve, take a checkpoint from it."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge import folders
from ..bridge.lora import install_checkpoint
from ..training.messages import message
from ..training.report import record_override
from ..training.run import RunFolder
from .schema import LoraName, RunHandle, problem, schema
from .shown import chosen_step, image_tensor, loss_chart, run_sentences, shown

CATEGORY = "Pistachio/train"
NO_RUNS = "no runs yet"  # an empty menu can't be clicked


class SelectCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioSelectCheckpoint",
            display_name="Select Checkpoint",
            category=CATEGORY,
            description="Puts a checkpoint of a run into models/loras: the one that the held-out pictures chose, or the step you name. Says why.",
            search_aliases=["lora", "train", "kohya", "best checkpoint", "install lora", "save lora", "export lora"],
            is_output_node=True,
            inputs=[
                RunHandle.Input("run", tooltip="From Train LoRA or Load Run. A run that was cancelled will do if it has a checkpoint."),
                io.Int.Input("step", default=-1, optional=True, min=-1, max=10_000_000, tooltip="-1: the chosen checkpoint. Else the step of a checkpoint, which the run's report then records as your choice; an error lists those there are."),
                io.String.Input("lora_name", default="", optional=True, placeholder="empty: the run's name", tooltip="Name of the file in models/loras. Empty: the run's name, and its step when it is not the chosen one. A file of another run is never overwritten: the name gets a number then."),
            ],
            outputs=[
                LoraName.Output("lora_file", display_name="lora_name", tooltip="The file in models/loras: connect it to lora_name of a stock LoRA loader."),
                io.Int.Output("chosen_step", display_name="step", tooltip="The step that was installed."),
                io.String.Output("summary", display_name="summary", tooltip="Why this step, in words."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        # A LoRA file that was deleted is installed again.
        return folders.loras_fingerprint()

    @classmethod
    def execute(cls, run, step=-1, lora_name="") -> io.NodeOutput:
        chosen = chosen_step(run) if step < 0 else step
        # Train LoRA has installed the chosen step under the run's name: another step gets a name of its own beside it.
        name = lora_name.strip() or (run.name if chosen == chosen_step(run) else f"{run.name}-step{chosen}")
        file = install_checkpoint(run, chosen, name)
        record_override(RunFolder(run.folder), chosen, file)
        installed = message("run.installed", "Step {step} is in models/loras as {file}.", step=chosen, file=file)
        sentences = (installed, *run_sentences(run))
        return io.NodeOutput(file, chosen, "\n".join(sentences), ui=shown(sentences=sentences))


class LossChart(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioLossChart",
            display_name="Loss Chart",
            category=CATEGORY,
            description="Draws the held-out loss of a run over its steps, with its error, the chosen checkpoint and the verdict.",
            search_aliases=["lora", "train", "kohya", "loss curve", "plot", "validation loss", "graph"],
            is_output_node=True,
            inputs=[RunHandle.Input("run", tooltip="From Train LoRA or Load Run, finished or not.")],
            outputs=[io.Image.Output("image", display_name="image", tooltip="The chart, 900 pixels wide.")],
        )

    @classmethod
    def execute(cls, run) -> io.NodeOutput:
        chart = loss_chart(run)
        return io.NodeOutput(image_tensor(chart), ui=shown(image=chart, sentences=run_sentences(run)))


class LoadRun(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioLoadRun",
            display_name="Load Run",
            category=CATEGORY,
            description="Opens a run from output/pistachio: to see its chart, take another checkpoint from it, or go on training it.",
            search_aliases=["lora", "train", "kohya", "resume training", "continue run", "open run"],
            inputs=[io.Combo.Input("run", options=folders.run_names() or [NO_RUNS], tooltip="Newest first. Press R on the canvas to see runs made since the page was loaded.")],
            outputs=[RunHandle.Output("opened", display_name="run", tooltip="For Select Checkpoint, Loss Chart, and continue_run of Train LoRA.")],
        )

    @classmethod
    def validate_inputs(cls, run=None):
        return problem(folders.find_run, run)

    @classmethod
    def fingerprint_inputs(cls, run=None):
        return folders.run_fingerprint(run) if run else ""

    @classmethod
    def execute(cls, run) -> io.NodeOutput:
        return io.NodeOutput(folders.find_run(run))
