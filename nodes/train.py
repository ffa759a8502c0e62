"""Training on the canvas."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge import folders
from ..bridge.base_file import base_file
from ..bridge.events import RunEvents
from ..bridge.items import Regularization
from ..bridge.lora import apply_lora, apply_lora_to_clip, install_checkpoint
from ..bridge.progress import check_interrupted
from ..bridge.training import run_to_train, train_lora
from ..training.config import (
    CHECKPOINTING, PRECISIONS, AdapterConfig, EvaluationConfig, LoggingConfig, ObjectiveConfig, OptimizerConfig, TrainConfig, replace,
)
from ..training.errors import PistachioError
from ..training.run import RunFolder, check_run_name
from .schema import ADVANCED, Adapter, Encoded, Evaluation, Logging, LoraName, Memory, Objective, Optimizer, RunHandle, Samples, default, problem, schema
from .shown import chosen_step, image_tensor, loss_chart, run_sentences, shown


class TrainLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioTrainLora",
            display_name="Train LoRA (Pistachio)",
            category="Pistachio/train",
            description="Trains a LoRA on the very MODEL you generate with, measures it on the held-out pictures, and gives the checkpoint that is best there. Queue again to resume a cancelled run; a finished one comes back at once.",
            search_aliases=["lora", "train", "kohya", "lora training", "fine-tune", "character lora", "dreambooth"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model, straight from its loader. It is not changed."),
                Encoded.Input("encoded", tooltip="From Encode Dataset, made with this model's VAE and CLIP."),
                Adapter.Input("adapter", optional=True, tooltip="From Adapter Settings. Not connected: LoRA of rank 16 on all linear layers."),
                Optimizer.Input("optimizer", optional=True, tooltip="From Optimizer Settings. Not connected: AdamW at 1e-4 with a cosine schedule."),
                Objective.Input("objective", optional=True, tooltip="From Objective Settings. Not connected: the timesteps that suit the model and the plain squared error."),
                Evaluation.Input("evaluation", optional=True, tooltip="From Evaluation Settings. Not connected: 16 evaluations and early stop."),
                Logging.Input("logging", optional=True, tooltip="From Logging Settings. Not connected: the run folder alone."),
                RunHandle.Input("continue_run", optional=True, tooltip="From Load Run: go on with this run, for num_steps in all (0: to its planned end, or half as many again where it came to that). run_name is then not used. Weights, average and optimiser go on as they were; the learning rate goes on as its schedule over the new number of steps has it there, so a constant one gives what training so long at once would have given."),
                io.Clip.Input("clip", optional=True, tooltip="Connect Encode Dataset's CLIP to train the text encoder too (SD1.5 and SDXL). Not connected: the model alone, which is usual and safer with few pictures."),
                Samples.Input("samples", optional=True, tooltip="From Sample Settings: pictures of the model in training. Not connected: none."),
                io.String.Input("trigger_word", default="", optional=True, tooltip="Empty, or the same as on Encode Dataset: a guard against training the wrong set."),
                io.String.Input("run_name", default="my_character", optional=True, tooltip="Names the run folder output/pistachio/<name> and the LoRA file. Another name for other settings or pictures."),
                io.Int.Input(
                    "num_steps", default=0, optional=True, min=0, max=1_000_000,
                    tooltip="Optimiser steps. 0: automatic, about 100 for each picture, 400 to 4000 in all; early stop ends it sooner.",
                ),
                io.Int.Input("batch_size", default=default(TrainConfig, "batch_size"), optional=True, min=1, max=64, tooltip="Pictures in one forward pass. More is faster for each picture and needs more memory."),
                io.Int.Input("accumulation", default=default(TrainConfig, "accumulation"), optional=True, min=1, max=256, tooltip="Batches in one optimiser step: the effect of a larger batch without its memory.", **ADVANCED),
                io.Int.Input("seed", default=default(TrainConfig, "seed"), optional=True, min=0, max=2**53 - 1, control_after_generate=False, tooltip="Fixes every random choice: the same graph gives the same LoRA."),
                io.Float.Input(
                    "prior_preservation", default=default(ObjectiveConfig, "prior_fraction"), optional=True, min=0.0, max=0.9, step=0.05,
                    tooltip="Share of the samples that teach the LoRA to leave captions without the trigger word as the base has them. 0: the character may appear without its trigger. Needs no extra pictures.",
                ),
                io.Combo.Input("precision", options=list(PRECISIONS), default=default(TrainConfig, "precision"), optional=True, tooltip="Of the computation. auto: bf16 on a GPU. fp32 is slower and never overflows. The LoRA itself is always fp32.", **ADVANCED),
                io.Combo.Input(
                    "block_checkpointing", options=list(CHECKPOINTING), default=default(TrainConfig, "block_checkpointing"), optional=True,
                    tooltip="on: needs far less memory and about a third more time. auto: on for large models.", **ADVANCED,
                ),
                Encoded.Input("regularization", optional=True, tooltip="From a second Encode Dataset: ordinary pictures of the class (any woman, any cat), trained along without the trigger word so that the class stays as it is. Never held out."),
                io.Float.Input("regularization_share", default=default(Regularization, "share"), optional=True, min=0.0, max=0.9, step=0.05, tooltip="Share of the steps that train on the regularisation pictures.", **ADVANCED),
                io.Float.Input("regularization_weight", default=default(Regularization, "weight"), optional=True, min=0.01, max=100.0, step=0.05, tooltip="Weight of the regularisation pictures' loss.", **ADVANCED),
                Memory.Input("memory", optional=True, tooltip="From Memory Settings. Not connected: a run on a card plans what fits by itself; a run on a CPU is not planned."),
            ],
            outputs=[
                io.Model.Output("trained_model", display_name="model", tooltip="The base model with the chosen checkpoint's LoRA at strength 1."),
                LoraName.Output("lora_file", display_name="lora_name", tooltip="The LoRA's file in models/loras: connect it to lora_name of a stock LoRA loader."),
                RunHandle.Output("run", display_name="run", tooltip="For Select Checkpoint and Loss Chart."),
                io.Image.Output("chart", display_name="loss_chart", tooltip="Held-out loss over the steps, with the chosen checkpoint and the verdict."),
                io.Clip.Output("trained_clip", display_name="clip", tooltip="The given CLIP with the LoRA's text encoder part. Without a CLIP on the input there is none: use the base's own."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def validate_inputs(cls, run_name=None):
        return problem(check_run_name, run_name)

    @classmethod
    def fingerprint_inputs(cls, run_name=None, **inputs):
        # The run's state on disk: a deleted run or LoRA is made again, whatever the host remembers.
        return folders.run_fingerprint(run_name) if run_name else folders.loras_fingerprint()

    @classmethod
    def execute(
        cls, model, encoded, adapter=None, optimizer=None, objective=None, evaluation=None, logging=None, continue_run=None, samples=None, clip=None, trigger_word="",
        run_name="my_character", num_steps=0, batch_size=1, accumulation=1, seed=0, prior_preservation=0.5,
        precision="auto", block_checkpointing="auto",
        regularization=None, regularization_share=0.5, regularization_weight=1.0, memory=None,
    ) -> io.NodeOutput:
        config = TrainConfig(
            num_steps=num_steps, batch_size=batch_size, accumulation=accumulation, seed=seed, precision=precision,
            block_checkpointing=block_checkpointing,
            adapter=adapter or AdapterConfig(),
            optimizer=optimizer or OptimizerConfig(),
            objective=replace(objective or ObjectiveConfig(), prior_fraction=prior_preservation),
            evaluation=evaluation or EvaluationConfig(),
        )
        if trigger_word.strip() not in ("", encoded.trigger_word):
            raise PistachioError(
                f"The trigger word is '{trigger_word.strip()}' here and '{encoded.trigger_word}' in the encoded set. Write the same word on both nodes."
            )
        to_train = run_to_train(config, run_name=run_name, runs_folder=folders.runs_folder(), continue_run=continue_run)
        workflow = ((cls.hidden.extra_pnginfo or {}).get("workflow") or {}).get("id")
        run = train_lora(
            model, encoded, config, run_name=run_name, logging_config=logging or LoggingConfig(), runs_folder=folders.runs_folder(),
            log_row=RunEvents(node_id=cls.hidden.unique_id, folder=to_train.folder, workflow=workflow), check_interrupted=check_interrupted, continue_run=continue_run,
            samples=samples, clip=clip, memory=memory, regularization=_regularization(regularization, regularization_share, regularization_weight),
            base_file=base_file(cls.hidden.prompt, cls.hidden.unique_id),
        )
        step = chosen_step(run)
        lora_name = install_checkpoint(run, step)
        trained = apply_lora(model, RunFolder(run.folder).checkpoint_file(step))
        trained_clip = clip and apply_lora_to_clip(clip, RunFolder(run.folder).checkpoint_file(step))
        chart = loss_chart(run)
        # The panel of a node whose run_name is linked hears it nowhere else.
        told = shown(sentences=(f"LoRA: {lora_name}", *run_sentences(run))) | {"pistachio_run": [{"run": run.name, "workflow": workflow}]}
        return io.NodeOutput(trained, lora_name, run, image_tensor(chart), trained_clip, ui=told)


def _regularization(encoded, share: float, weight: float) -> Regularization | None:
    return None if encoded is None else Regularization(encoded=encoded, share=share, weight=weight)
