"""A graph run by ComfyUI's own executor in the test process, and what came of it."""

from __future__ import annotations

import asyncio
import uuid


class Executor:
    """`executor(prompt)` runs it; one cache for all runs. Needs a booted host."""

    def __init__(self) -> None:
        import execution
        import nodes as host_nodes
        import server
        from comfy_extras.nodes_mask import ImageToMask
        from comfy_extras.nodes_preview_any import NODE_CLASS_MAPPINGS as PREVIEW_ANY
        from pistachio.nodes import NODES

        host_nodes.NODE_CLASS_MAPPINGS.update(PREVIEW_ANY | {"ImageToMask": ImageToMask} | {node.GET_SCHEMA().node_id: node for node in NODES})
        instance = server.PromptServer.instance
        instance.client_id = instance.last_prompt_id = None
        self._run = execution.PromptExecutor(instance, cache_args={"lru": 0, "ram": 0.0, "ram_inactive": 0.0})

    def __call__(self, prompt: dict) -> None:
        import execution

        prompt = {node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in prompt.items()}
        prompt_id = str(uuid.uuid4())
        valid, _, outputs, node_errors = asyncio.run(execution.validate_prompt(prompt_id, prompt, None))
        assert valid, node_errors
        self._run.execute(prompt, prompt_id, {}, outputs)

    def ok(self, prompt: dict) -> Executor:
        self(prompt)
        assert self._run.success, self._run.status_messages
        return self

    def error(self, prompt: dict) -> str:
        """The message of the error that it ends with."""
        self(prompt)
        assert not self._run.success
        return self._messages("execution_error")[0]["exception_message"]

    @property
    def cached(self) -> set[str]:
        return set(self._messages("execution_cached")[0]["nodes"])

    def shown(self, node_id: str) -> dict:
        return self._run.history_result["outputs"][node_id]

    def text(self, node_id: str) -> str:
        return "\n".join(self.shown(node_id)["text"])

    def ran(self, node_id: str) -> bool:
        return node_id in self._run.history_result["outputs"]

    def _messages(self, kind: str) -> list[dict]:
        return [data for name, data in self._run.status_messages if name == kind]


def refusal(prompt: dict, node_id: str) -> str:
    """What the host says of a node before it runs anything. Needs an Executor, which makes the nodes known."""
    import execution

    # its own answer "valid" speaks for the prompt: another output may be fine
    _, _, _, node_errors = asyncio.run(execution.validate_prompt("test", prompt, None))
    return " ".join(error["details"] for error in node_errors[node_id]["errors"])
