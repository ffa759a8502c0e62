"""A ComfyUI workflow in the canvas's own format, built node by node from what /object_info says of each type.

Owns the format: slots, widget order, links, groups, sizes, app mode's form, and the one node that a subgraph blueprint is.
Knows nothing of what a workflow is for.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

# Sockets of these types are drawn as widgets. A combo of an old-style node is a list of its choices.
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
PACK = {"cnr_id": "pistachio-lora"}
CORE = {"cnr_id": "comfy-core"}
INSIDE, OUTSIDE = -10, -20  # the host's ids of a subgraph's own input and output node
SLOT_PX = 20
VIEW_AT_PX, VIEW_PX = (90, 130), (1480, 780)
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
    taken: list[tuple[str, str]] = field(default_factory=list)  # name and type of what a subgraph is given
    given: list[tuple[str, Output]] = field(default_factory=list)  # and of what it gives
    form: list[list] = field(default_factory=list)  # app mode: node, widget, what is written beside it
    results: list[int] = field(default_factory=list)  # app mode: nodes whose pictures are the result

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

    def take(self, name: str, kind: str) -> Output:
        """An input of the subgraph: a socket, or a widget where it leads to one."""
        self.taken.append((name, kind))
        return Output(INSIDE, len(self.taken) - 1, kind)

    def give(self, name: str, output: Output) -> None:
        self.given.append((name, output))

    def ask(self, output: Output, widget: str, description: str, *, label: str = "") -> None:
        """A question of app mode's form: a widget of the node that the output is of, or what our script shows on it."""
        slots = {one["name"]: one for one in self.nodes[output.node - 1]["inputs"]}
        if label:
            slots[widget]["label"] = label
        self.form.append([output.node, widget, {"description": description}])

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

    def _view(self) -> dict:
        """Where the canvas stands when it is opened: all of it, below the bar and beside the sidebar of a usual window."""
        boxes = [group["bounding"] for group in self.groups]
        left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
        width, height = max(box[0] + box[2] for box in boxes) - left, max(box[1] + box[3] for box in boxes) - top
        scale = round(min(VIEW_PX[0] / width, VIEW_PX[1] / height, 0.8), 3)
        return {"scale": scale, "offset": [round(VIEW_AT_PX[0] / scale - left), round(VIEW_AT_PX[1] / scale - top)]}

    def workflow(self, *, workflow_id: str) -> dict:
        for link_id, node, slot, *_ in self.links:
            self.nodes[node - 1]["outputs"][slot]["links"].append(link_id)
        app = {"linearMode": True, "linearData": {"inputs": self.form, "outputs": self.results}} if self.form else {}
        return {
            "id": workflow_id, "revision": 0, "last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes,
            "links": self.links, "groups": self.groups, "config": {}, "extra": {"ds": self._view(), **app},
            "version": 0.4,
        }

    def blueprint(self, *, name: str, description: str, aliases: tuple[str, ...], category: str, size: tuple[int, int]) -> dict:
        """One node, and in its definition this graph: what the host's node library lists and a person drops on the canvas."""
        subgraph_id, links = str(uuid.uuid5(uuid.NAMESPACE_URL, f"pistachio/subgraph/{name}")), []
        taken_links: list[list[int]] = [[] for _ in self.taken]
        for link_id, origin, slot, target, target_slot, kind in self.links:
            (taken_links[slot] if origin == INSIDE else self.nodes[origin - 1]["outputs"][slot]["links"]).append(link_id)
            links.append({"id": link_id, "origin_id": origin, "origin_slot": slot, "target_id": target, "target_slot": target_slot, "type": kind})
        given_links = []
        for index, (_, output) in enumerate(self.given):
            link_id = len(links) + 1
            links.append({"id": link_id, "origin_id": output.node, "origin_slot": output.slot, "target_id": OUTSIDE, "target_slot": index, "type": output.type})
            self.nodes[output.node - 1]["outputs"][output.slot]["links"].append(link_id)
            given_links.append([link_id])
        left = min(node["pos"][0] for node in self.nodes) - 260
        right = max(node["pos"][0] + node["size"][0] for node in self.nodes) + 120

        def boundary(names: list[tuple[str, str]], found: list[list[int]], x: int) -> list[dict]:
            return [
                {
                    "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{subgraph_id}/{x}/{one}")), "name": one, "type": kind, "linkIds": ids,
                    "pos": [x, SLOT_PX * (1 + index)],
                }
                for index, ((one, kind), ids) in enumerate(zip(names, found))
            ]

        kinds = [(one, output.type) for one, output in self.given]
        is_widget = [any(self.nodes[link["target_id"] - 1]["inputs"][link["target_slot"]].get("widget") for link in links if link["id"] in ids) for ids in taken_links]
        node = {
            "id": len(self.nodes) + 1, "type": subgraph_id, "pos": [0, 0], "size": list(size), "flags": {}, "order": 0, "mode": 0,
            "inputs": [
                {"name": one, "type": kind, **({"widget": {"name": one}} if widget else {}), "link": None}
                for (one, kind), widget in zip(self.taken, is_widget)
            ],
            "outputs": [{"name": one, "type": kind, "links": None} for one, kind in kinds],
            "title": name, "properties": PACK | {"ver": self.pack_version}, "widgets_values": [],
        }
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"pistachio/blueprint/{name}")), "revision": 0, "last_node_id": node["id"], "last_link_id": 0,
            "nodes": [node], "links": [], "version": 0.4,
            "definitions": {"subgraphs": [{
                "id": subgraph_id, "version": 1, "revision": 0, "config": {}, "name": name, "category": category, "description": description,
                "state": {"lastGroupId": len(self.groups), "lastNodeId": node["id"], "lastLinkId": len(links), "lastRerouteId": 0},
                "inputNode": {"id": INSIDE, "bounding": [left, 0, 140, SLOT_PX * (2 + len(self.taken))]},
                "outputNode": {"id": OUTSIDE, "bounding": [right, 0, 140, SLOT_PX * (2 + len(self.given))]},
                "inputs": boundary(self.taken, taken_links, left + 120), "outputs": boundary(kinds, given_links, right + 20),
                "widgets": [], "nodes": self.nodes, "groups": self.groups, "links": links, "extra": {},
            }]},
            "config": {}, "extra": {"BlueprintDescription": description, "BlueprintSearchAliases": list(aliases)},
        }
