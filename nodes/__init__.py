"""What stands on the canvas: every node in the order in which a character is trained."""

from comfy_api.latest import ComfyExtension, io

from ..bridge.routes import add_routes
from .caption import CaptionDataset, CaptionOptionsNode, LoadJoyCaption
from .dataset import LoadImageFolder, LoadVideoFolder, SplitDataset
from .encode import AugmentationSettings, EncodeDataset
from .runs import LoadRun, LossChart, SelectCheckpoint
from .settings import SETTINGS_NODES
from .train import TrainLora

NODES: list[type[io.ComfyNode]] = [
    LoadImageFolder,
    LoadVideoFolder,
    LoadJoyCaption,
    CaptionOptionsNode,
    CaptionDataset,
    SplitDataset,
    EncodeDataset,
    AugmentationSettings,
    *SETTINGS_NODES,
    TrainLora,
    SelectCheckpoint,
    LossChart,
    LoadRun,
]


class PistachioExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        # Here, because on_load is not called by every ComfyUI that the pack supports.
        add_routes()
        return NODES
