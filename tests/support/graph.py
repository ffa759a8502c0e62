"""A ComfyUI workflow in the canvas's own format, built node by node from what /object_info says of each type.

Owns the format: slots, widget order, links, groups, sizes. Knows nothing of what a workflow is for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Sockets of these types are drawn as widgets. A combo of an old-style node is a list of its choices.
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
PACK = {"cnr_id": "pistachio-lora"}
CORE = {"cnr_id": "comfy-core"}
NOTE_COLOURS = {"color": "#33412a", "bgcolor": "#28331f"}


@dataclass(frozen=True, slots=True)
class Output:
    node: int
    slot: int
    type: str


@dataclass(kw_only=True, slots=True)
class Graph:
    object_info: dict
    pack_version: str
    core_version: str
    nodes: list[dict] = field(default_factory=list)
    links: list[list] = field(default_factory=list)
    groups: list[dict] = field(default_factory=list)

    def add(
        self, node_type: str, at: tuple[int, int], size: tuple[int, int], *, title: str = "", models: tuple[dict, ...] = (), **values: Any
    ) -> tuple[Output, ...]:
        """A node at the place of its top left corner, without the title bar. An Output as a value makes a link, all else is a widget's value."""
        info = self.object_info[node_type]
        specs = {name: spec for part in ("required", "optional") for name, spec in info["input"].get(part, {}).items()}
        unknown = sorted(set(values) - set(specs))
        if unknown:
            raise KeyError(f"{node_type} has no input {', '.join(unknown)}; it has {', '.join(specs)}.")
        node_id = len(self.nodes) + 1
        sockets, widgets, widget_values = [], [], []
        for name, spec in specs.items():
            kind = "COMBO" if isinstance(spec[0], list) else spec[0]
            options = spec[1] if len(spec) > 1 else {}
            link = self._link(values[name], node_id, kind) if isinstance(values.get(name), Output) else None
            if kind not in WIDGET_TYPES or options.get("forceInput"):
                sockets.append({"name": name, "type": kind, "link": link, **({"shape": 7} if name in info["input"].get("optional", {}) else {})})
                continue
            widgets.append({"name": name, "type": kind, "widget": {"name": name}, "link": link})
            widget_values.append(self._unseen(spec) if link is not None else values.get(name, self._default(spec)))
            if kind == "INT" and options.get("control_after_generate", name in ("seed", "noise_seed")):
                widget_values.append("fixed")
            if options.get("image_upload"):
                widget_values.append("image")  # the canvas's button beneath the menu
        inputs = sockets + widgets
        for slot, one in enumerate(inputs):
            if one["link"] is not None:
                self.links[one["link"] - 1][4] = slot
        outputs = tuple(Output(node_id, slot, kind) for slot, kind in enumerate(info["output"]))
        is_ours = node_type.startswith("Pistachio")
        identity = PACK | {"ver": self.pack_version} if is_ours else CORE | {"ver": self.core_version}
        self.nodes.append({
            "id": node_id, "type": node_type, "pos": list(at), "size": list(size), "flags": {}, "order": node_id - 1, "mode": 0,
            "inputs": inputs,
            "outputs": [
                {"name": name, "type": output.type, "links": []} for output, name in zip(outputs, info["output_name"])
            ],
            **({"title": title} if title else {}),
            "properties": {**identity, "Node name for S&R": node_type, **({"models": list(models)} if models else {})},
            "widgets_values": widget_values,
        })
        return outputs

    @staticmethod
    def _default(spec: list) -> Any:
        options = spec[1] if len(spec) > 1 else {}
        choices = spec[0] if isinstance(spec[0], list) else options.get("options", [])
        return options.get("default", choices[0] if choices else "")

    @classmethod
    def _unseen(cls, spec: list) -> Any:
        """The value under a link: a menu's first entry would be a file of whoever built the workflow."""
        return "" if isinstance(spec[0], list) or spec[0] == "COMBO" else cls._default(spec)

    def _link(self, source: Output, target: int, kind: str) -> int:
        self.links.append([len(self.links) + 1, source.node, source.slot, target, 0, kind])
        return len(self.links)

    def note(self, at: tuple[int, int], size: tuple[int, int], text: str, *, title: str = "Note") -> None:
        node_id = len(self.nodes) + 1
        self.nodes.append({
            "id": node_id, "type": "MarkdownNote", "pos": list(at), "size": list(size), "flags": {}, "order": node_id - 1, "mode": 0,
            "inputs": [], "outputs": [], "title": title, "properties": {}, "widgets_values": [text.strip()], **NOTE_COLOURS,
        })

    def group(self, title: str, bounding: tuple[int, int, int, int], colour: str) -> None:
        self.groups.append({
            "id": len(self.groups) + 1, "title": title, "bounding": list(bounding), "color": colour, "font_size": 24, "flags": {},
        })

    def workflow(self, *, workflow_id: str, scale: float = 0.5, offset: tuple[int, int] = (60, 120)) -> dict:
        for link_id, node, slot, *_ in self.links:
            self.nodes[node - 1]["outputs"][slot]["links"].append(link_id)
        return {
            "id": workflow_id, "revision": 0, "last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes,
            "links": self.links, "groups": self.groups, "config": {}, "extra": {"ds": {"scale": scale, "offset": list(offset)}},
            "version": 0.4,
        }
