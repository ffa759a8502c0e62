"""ComfyUI's canvas in a real browser: open it, load a graph, press the queue button, read what is shown.

Playwright does the driving; knows the host's page, nothing of our nodes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .server import Server

OPEN_TIMEOUT_MS = 120_000


@dataclass(kw_only=True, slots=True)
class Canvas:
    page: Any
    server: Server
    requested: list[str] = field(default_factory=list)  # addresses of everything that the page fetched
    errors: list[str] = field(default_factory=list)  # uncaught exceptions and console errors, without the host's own 404s

    def open(self, *, nodes_2: bool | None = None) -> Canvas:
        """`nodes_2` chooses the renderer where the host has two; None leaves its default."""
        settings = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingModelsWarning": False}
        if nodes_2 is not None:
            settings["Comfy.VueNodes.Enabled"] = nodes_2
        self.server.post("/api/settings", settings)
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))
        self.page.on("console", lambda message: self._note(message))  # playwright sets an attribute on a method's object
        self.page.goto(self.server.url, timeout=OPEN_TIMEOUT_MS)
        # The graph of a new session comes last, and would replace one that a test loads before it.
        ready = "() => window.app?.extensionManager?.workflow?.activeWorkflow && window.app.graph._nodes.length > 0"
        self.page.wait_for_function(ready, timeout=OPEN_TIMEOUT_MS)
        return self

    def _note(self, message) -> None:
        # The host asks its registry about every pack, and its own policy refuses that.
        if message.type == "error" and not any(text in message.text for text in ("404", "Failed to load resource", "api.comfy.org")):
            self.errors.append(message.text)

    def our_errors(self) -> list[str]:
        return [error for error in self.errors if "pistachio" in error.lower()]

    def load(self, workflow: dict | Path) -> None:
        """Through the canvas's own parser, as a dropped file would be."""
        graph = json.loads(workflow.read_text(encoding="utf-8")) if isinstance(workflow, Path) else workflow
        self.page.evaluate("graph => window.app.loadGraphData(graph)", graph)

    def fill(self, table: dict[str, dict], *, centre: str, offset: tuple[int, int], scale: float = 0.9) -> None:
        """Values into the widgets of nodes, by type (`{type: {widget: value}}`); then the view onto the first node of type `centre`, where there is one."""
        self.page.evaluate(
            """([table, centre, offset, scale]) => {
                for (const node of app.graph._nodes)
                    for (const [name, value] of Object.entries(table[node.type] ?? {})) {
                        const widget = node.widgets.find(widget => widget.name === name);
                        widget.value = value;
                        widget.callback?.(value);
                    }
                const seen = app.graph._nodes.find(node => node.type === centre);
                if (!seen) return;
                app.canvas.ds.scale = scale;
                app.canvas.ds.offset = [offset[0] - seen.pos[0], offset[1] - seen.pos[1]];
                app.canvas.setDirty(true, true);
            }""",
            [table, centre, list(offset), scale],
        )

    def nodes(self) -> list[dict]:
        """id, type and title of every node; `missing` where the host does not know its type."""
        return self.page.evaluate(
            "() => window.app.graph._nodes.map(n => ({id: String(n.id), type: n.type, title: n.title,"
            " missing: !(n.type in window.LiteGraph.registered_node_types)}))"
        )

    def prompt(self) -> dict:
        """What the queue button would send, in API format."""
        return self.page.evaluate("async () => (await window.app.graphToPrompt()).output")

    def queue(self) -> None:
        self.page.get_by_test_id("queue-button").click()
