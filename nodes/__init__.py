"""What stands on the canvas: every node in the order in which a character is trained."""

from comfy_api.latest import ComfyExtension, io

from ..bridge.routes import add_routes
from ..bridge.scripts import keep_scripts_fresh
from ..bridge.templates import sort_templates
from .caption import CaptionDataset, CaptionOptionsNode, LoadJoyCaption
from .caption_rules import CaptionHistoryNode, CaptionRulesNode
from .captioners import CaptionerFromClip, LoadGGUFCaptioner
from .character_sheet import BuildPrompts, CharacterSheet, SaveToDataset
from .checks import CheckDataset
from .crops import CropSubjects, DatasetImages
from .dataset import LoadImageFolder, LoadVideoFolder, SplitDataset
from .encode import AugmentationSettings, EncodeDataset
from .grid import CheckpointGrid
from .kernel_report import KernelReport
from .plan import PlanTraining
from .review import ReviewDataset
from .quantize import QuantizeBase
from .runs import LoadRun, LossChart, SelectCheckpoint
from .settings import SETTINGS_NODES
from .test_sheet import TestSheet
from .timesteps import TimestepPlot
from .train import TrainLora
from .trigger import CheckTrigger

NODES: list[type[io.ComfyNode]] = [
    LoadImageFolder,
    LoadVideoFolder,
    CharacterSheet,
    SaveToDataset,
    LoadJoyCaption,
    LoadGGUFCaptioner,
    CaptionerFromClip,
    CaptionOptionsNode,
    CaptionDataset,
    CaptionRulesNode,
    CaptionHistoryNode,
    CheckTrigger,
    ReviewDataset,
    DatasetImages,
    CropSubjects,
    SplitDataset,
    CheckDataset,
    BuildPrompts,
    EncodeDataset,
    AugmentationSettings,
    QuantizeBase,
    *SETTINGS_NODES,
    TimestepPlot,
    KernelReport,
    PlanTraining,
    TrainLora,
    SelectCheckpoint,
    LossChart,
    CheckpointGrid,
    TestSheet,
    LoadRun,
]


class PistachioExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        # Here, because on_load is not called by every ComfyUI that the pack supports.
        add_routes()
        sort_templates()
        keep_scripts_fresh()
        return NODES
