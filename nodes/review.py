"""A person's review of pictures and captions, on the canvas: the node that carries the grid and passes on what was decided."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ..dataset.folder import folder_fingerprint
from ..dataset.review import apply_review, to_look_at
from ..training.messages import counted
from .schema import Dataset, schema
from .shown import spoken



class WatchedFolders:
    """The folders that reviews have read. A linked dataset is not known when fingerprints are asked for, so all of them are looked at."""

    most = 8

    def __init__(self):
        self.read: dict[Path, str] = {}  # folder -> its fingerprint
        self.turn = 0

    def add(self, folder: Path) -> None:
        self.read[folder] = folder_fingerprint(folder)
        while len(self.read) > self.most:
            del self.read[next(iter(self.read))]

    def fingerprint(self) -> str:
        """Another one whenever one of them has changed since."""
        for folder, before in self.read.items():
            if (now := folder_fingerprint(folder)) != before:
                self.read[folder] = now
                self.turn += 1
        return str(self.turn)


_watched = WatchedFolders()


class ReviewDataset(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return schema(
            node_id="PistachioReviewDataset",
            display_name="Review Dataset",
            category="Pistachio/dataset",
            description="Shows every picture with its caption: search, correct, accept, exclude, hold out. All is saved at once and can be undone; the dataset goes on with what was decided. No picture is ever deleted.",
            search_aliases=["caption", "joycaption", "lora", "train", "caption editor", "edit captions", "gallery", "curate dataset", "exclude pictures", "review captions"],
            is_output_node=True,
            inputs=[
                Dataset.Input("dataset", tooltip="From Load Image Folder, Caption Dataset or Caption Rules; before Split Dataset."),
                io.String.Input("trigger_word", default="", optional=True, placeholder="e.g. ohwx", tooltip="For 'Check' in the review: captions without this word are found. Empty: that is not looked for."),
                io.Int.Input("resolution", default=1024, optional=True, min=64, max=4096, step=8, tooltip="For 'Check' in the review: the training size that pictures are judged at, as on Encode Dataset."),
            ],
            outputs=[Dataset.Output("reviewed", display_name="dataset", tooltip="Without the excluded pictures, with the captions as they are on the disk, and with your held-out marks for Split Dataset.")],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return _watched.fingerprint()

    @classmethod
    def execute(cls, dataset, trigger_word="", resolution=1024) -> io.NodeOutput:
        _watched.add(dataset.folder)
        result = apply_review(dataset)
        waiting = to_look_at(result)
        sentences = [counted("node.review", len(result.pictures), "{count} picture goes on.", "{count} pictures go on.")]
        if waiting:
            sentences.append(counted(
                "node.review_waiting", waiting, "{count} caption to look at: choose 'To look at' in the filter.",
                "{count} captions to look at: choose 'To look at' in the filter.",
            ))
        sentences += result.notes[len(dataset.notes):]
        return io.NodeOutput(result, ui={"pistachio_review": [{"folder": str(dataset.folder), "notes": sentences, "sentences": spoken(sentences)}]})
