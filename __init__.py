"""Pistachio's entry point for ComfyUI: which nodes there are and where the browser's files lie.

Imports nothing of ComfyUI when it is itself imported, so that tests and tools can load the pack without a host.
"""

import logging

WEB_DIRECTORY = "./js"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint():
    try:
        from .nodes import PistachioExtension

        return PistachioExtension()
    except Exception:
        # ComfyUI logs the message alone; without the traceback a broken installation cannot be diagnosed.
        logging.getLogger("pistachio").exception("Pistachio could not load its nodes")
        raise
