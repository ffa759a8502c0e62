"""The checks before training, on the canvas."""

from __future__ import annotations

from comfy_api.latest import io

from ..bridge.machine import machine_for
from ..bridge.progress import NodeProgress, check_interrupted
from ..dataset.findings import STOP, WARNING
from ..dataset.quality_checks import check_dataset
from ..dataset.score_card import draw_score_card
from ..training.errors import PistachioError
from .schema import ADVANCED, Dataset, schema
from .shown import image_tensor, shown

HALTS = {"never": (), "what stops training": (STOP,), "any warning": (STOP, WARNING)}


class CheckDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioCheckDataset",
            display_name="Check Dataset",
            category="Pistachio/dataset",
            description="Looks at pictures and captions before hours of training are spent: what is blurred, tiny, doubled, missing or one-sided, and what to do about it. Changes nothing.",
            search_aliases=["lora", "train", "kohya", "caption", "joycaption", "dataset quality", "validate dataset", "blur detection", "duplicates", "score card", "caption check"],
            is_output_node=True,
            inputs=[
                Dataset.Input("dataset", tooltip="From Load Image Folder, Caption Dataset, Caption Rules or Split Dataset."),
                io.Model.Input("model", optional=True, tooltip="The model you will train: its size is compared with the memory there is. Not connected: that is not checked."),
                io.String.Input("trigger_word", default="", optional=True, placeholder="e.g. ohwx", tooltip="The word that will stand for the character. Empty: the one given on a node before, if any."),
                io.String.Input("class_noun", default="", optional=True, placeholder="e.g. woman", tooltip="What the character is. It may stand in every caption without a warning."),
                io.Int.Input("resolution", default=1024, optional=True, min=64, max=4096, step=8, tooltip="The training size, as on Encode Dataset: pictures are judged as they are trained."),
                io.Int.Input("num_steps", default=0, optional=True, min=0, max=1_000_000, tooltip="As on Train LoRA. 0: automatic."),
                io.Combo.Input("halt_on", options=list(HALTS), default="never", optional=True, tooltip="Stop the queue here when something of this kind is found, before anything is encoded or trained.", **ADVANCED),
            ],
            outputs=[
                Dataset.Output("checked", display_name="dataset", tooltip="The same pictures, unchanged."),
                io.Image.Output("score_card", display_name="score_card", tooltip="The findings as a picture, with the pictures concerned."),
                io.String.Output("report", display_name="report", tooltip="The findings as JSON: code, topic, severity, words, advice and pictures of each, and the counts behind them."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, dataset, model=None, trigger_word="", class_noun="", resolution=1024, num_steps=0, halt_on="never") -> io.NodeOutput:
        report = check_dataset(
            dataset, trigger_word=trigger_word, class_noun=class_noun, resolution=resolution, num_steps=num_steps, machine=machine_for(model),
            progress=NodeProgress(cls.hidden.unique_id, unit="pictures checked"), check_interrupted=check_interrupted,
        )
        found = report.of(*HALTS[halt_on])
        if found:
            told = " ".join(finding.sentence for finding in found)
            raise PistachioError(f"{report.verdict}. {told} Correct this, or set 'halt_on' to never on Check Dataset.")
        card = draw_score_card(report, dataset)
        return io.NodeOutput(dataset, image_tensor(card), report.to_json(), ui=shown(image=card, sentences=report.sentences))
