"""The host's progress bar, the line of text on a node, and its cancel button."""

from __future__ import annotations

import comfy.model_management
import comfy.utils
from server import PromptServer


def check_interrupted() -> None:
    """Raises the host's own exception when the user pressed cancel; it must reach the host."""
    comfy.model_management.throw_exception_if_processing_interrupted()


class NodeProgress:
    """`progress(done, total)` moves the bar of one node; `text` shows a line on it."""

    def __init__(self, node_id: str, *, unit: str = ""):
        self.node_id = node_id
        self.unit = unit  # with one, the count is shown as text too
        self.bar = comfy.utils.ProgressBar(1, node_id=node_id)

    def __call__(self, done: int, total: int) -> None:
        self.bar.update_absolute(done, max(1, total))
        if self.unit:
            self.text(f"{done} of {total} {self.unit}")

    def text(self, words: str) -> None:
        server = PromptServer.instance
        server.send_progress_text(words, self.node_id, server.client_id)
