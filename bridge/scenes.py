"""What the chosen checkpoint draws of a handful of scenes, beside what the base draws of them from the same noise.

Owns which prompts and seeds a test sheet has; the sampling is `bridge.grid`'s, the picture `training.scenes_picture`'s.
"""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from ..training.errors import PistachioError
from ..training.run import Run, RunFolder
from ..training.scenes_picture import Pair, draw_scenes
from .encode import check_clip, check_vae, text_encoder
from .grid import GridSettings, held_out_words, sample_picture, size_of
from .lora import apply_lora


def scene_pairs(
    run: Run, step: int, model, clip, vae, settings: GridSettings, *, progress: Callable[[int, int], None] = lambda value, total: None,
    check_interrupted: Callable[[], None] = lambda: None,
) -> tuple[Image.Image, list[Pair]]:
    """The labelled picture and its pairs; `settings.prompts` are the scenes. Call under the host's inference mode; the MODEL is left as it was."""
    check_clip(clip)
    check_vae(vae)
    if not settings.prompts:
        raise PistachioError("A test sheet needs at least one scene. Write one a line on Test Sheet, without the trigger word.")
    folder = RunFolder(run.folder)
    trigger = (folder.dataset() or {}).get("trigger_word", "")
    prompts = [f"{trigger}, {scene}" if trigger else scene for scene in settings.prompts]
    encode = text_encoder(clip)
    positive, negative = [encode(prompt) for prompt in prompts], encode(settings.negative_prompt)
    width, height = size_of(run, settings)
    drawn: list[list[Image.Image]] = []
    # All of the base's first: the model is patched once, not once a scene.
    for column, patcher in enumerate((model, apply_lora(model, folder.checkpoint_file(step)))):
        drawn.append([])
        for index, condition in enumerate(positive):
            drawn[column].append(sample_picture(patcher, vae, condition, negative, settings, settings.seed + index, width, height, check_interrupted))
            progress(column * len(prompts) + index + 1, 2 * len(prompts))
    pairs = [Pair(scene=prompt, without=one, with_lora=two) for prompt, one, two in zip(prompts, *drawn)]
    measured = {row["step"]: row["loss_delta_pct"] for row in folder.metrics() if row["kind"] == "eval"}
    sheet = draw_scenes(
        pairs, title=f"{run.name}, step {step}",
        subtitle=f"{held_out_words(measured.get(step))} against the base; each pair is drawn from the same prompt and the same noise",
    )
    return sheet, pairs
