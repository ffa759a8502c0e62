"""The checks before training: a whole Dataset, or the short form of an encoded one, as a Report.

Owns which checks there are, their order and their limits on pictures, steps, disk and memory; captions are
`caption_checks.py`'s matter. Refusing is not: `checks.py` does that where nothing can work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..training.config import TrainConfig
from ..training.errors import PistachioError
from ..training.messages import Listed, Message, counted, message
from .caption_checks import Captions, caption_findings, framing
from .checks import MIN_PICTURES
from .crops import framing_of
from .duplicates import near_duplicate_groups
from .findings import GOOD, NOTE, STOP, WARNING, Finding, Report
from .folder import name_list, plural
from .images import EXTENSIONS
from .picture_quality import Quality, measure_file
from .split import split_dataset
from .types import Dataset, EncodedDataset, Picture

FEW_PICTURES, ENOUGH_PICTURES = 10, 15
TINY_SHARE, SMALL_SHARE = 0.25, 0.7  # of the training area
LONG_RATIO = 2.2  # of the sides: a crop of such a picture is narrow
FEW_STEPS_EACH, MANY_STEPS_EACH = 30, 400
THREADS = 4
SHORT_FORM_PICTURES = 100  # more would hold up the training
CONDITION_BYTES = 4_500_000  # of a caption, with and without its trigger, as the largest text encoders give it
UNKNOWN_LORA_BYTES = 200_000_000
CHECKPOINTS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What there is to train on; None: not known."""

    free_disk_bytes: int | None = None
    device: str = "GPU"
    device_bytes: int | None = None  # memory of the training device in all
    model_bytes: int | None = None  # the base model's weights
    lora_bytes: int | None = None  # of one checkpoint at the default settings


def check_dataset(
    dataset: Dataset,
    *,
    trigger_word: str = "",
    class_noun: str = "",
    resolution: int = 1024,
    num_steps: int = 0,  # 0: automatic
    machine: Machine = Machine(),
    progress: Callable[[int, int], None] = lambda done, total: None,
    check_interrupted: Callable[[], None] = lambda: None,
) -> Report:
    """Reads every picture once (again only when it changed)."""
    trigger = trigger_word.strip() or dataset.trigger_word
    skipped = {item.relative_path: item.reason for item in dataset.skipped}
    qualities = _measure_all(dataset, resolution, skipped, progress, check_interrupted)
    distinct = {picture.content_hash: picture for picture in reversed(dataset.pictures)}
    train, held_out = _split_sizes(dataset, len(distinct))
    captions: Captions = {picture.relative_path: picture.caption for picture in dataset.pictures}
    framings = {p.relative_path: kind for p in dataset.pictures if (kind := framing_of(p.boxes, p.width, p.height))}
    findings = (
        _enough(len(distinct), held_out), _readable(skipped), _sizes({p.relative_path: p.width * p.height for p in dataset.pictures}, resolution), _sharpness(qualities), _compression(qualities),
        _duplicates(_named_groups(dataset), len(dataset.pictures)), _shapes(dataset.pictures), *caption_findings(captions, trigger, class_noun=class_noun, framings=framings), _steps(train, num_steps),
        _disk(len(distinct), resolution, machine), *_memory(machine),
    )
    return Report(findings=findings, facts=_facts(dataset, framings, qualities, train, held_out, num_steps, resolution, trigger))


def _measure_all(
    dataset: Dataset, resolution: int, skipped: dict[str, str], progress: Callable[[int, int], None], check_interrupted: Callable[[], None]
) -> dict[str, Quality]:
    """On several threads: the filters let go of Python's lock. What can't be read goes to `skipped`."""
    stills = [picture for picture in dataset.pictures if picture.clip is None]
    qualities: dict[str, Quality] = {}
    pool = ThreadPoolExecutor(max_workers=THREADS)
    try:
        waiting = [pool.submit(measure_file, picture.path, resolution) for picture in stills]
        for done, (picture, measured) in enumerate(zip(stills, waiting)):
            check_interrupted()
            try:
                qualities[picture.relative_path] = measured.result()
            except (PistachioError, OSError) as error:
                skipped[picture.relative_path] = str(error)
            progress(done + 1, len(stills))
    finally:
        pool.shutdown(cancel_futures=True)  # after a cancel, what is not begun is never begun
    return qualities


def check_encoded(encoded: EncodedDataset, *, num_steps: int = 0, batch: int = 1) -> tuple[str, ...]:
    """The short form, for the train node: sentences on what is wrong, none where nothing is."""
    captions: Captions = {item.relative_path: item.caption for item in encoded.items}
    qualities = {}
    for item in encoded.items[:SHORT_FORM_PICTURES]:
        path = encoded.folder / item.relative_path
        if path.suffix.lower() in EXTENSIONS:
            try:
                qualities[item.relative_path] = measure_file(path, round(math.sqrt(item.width * item.height)))
            except (PistachioError, OSError):
                continue  # the cache has its pixels: the file may be gone
    groups: dict[str, list[str]] = {}
    for item in encoded.items:
        groups.setdefault(item.near_duplicate_of or item.content_hash, []).append(item.relative_path)
    pixels = {item.relative_path: item.width * item.height for item in encoded.items}
    findings = (
        _enough(len(encoded.items), len(encoded.held_out)), _sizes(pixels, round(math.sqrt(max(pixels.values(), default=0)))), _sharpness(qualities),
        _compression(qualities), _duplicates(list(groups.values()), len(encoded.items)), *caption_findings(captions, encoded.trigger_word), _steps(len(encoded.train), num_steps, batch),
    )
    return tuple(finding.sentence for finding in Report(findings=findings).of(WARNING, STOP))


# ---- pictures ------------------------------------------------------------------------


def _enough(count: int, held_out: int) -> Finding:
    topic = message("topic.number", "Number of pictures")
    words = counted(
        "check.number", count, "{count} different picture, {held_out} held out to measure with.",
        "{count} different pictures, {held_out} held out to measure with.", held_out=held_out,
    )
    if count < MIN_PICTURES:
        advice = message("check.too_few.advice", "Training needs at least {least}; about 20 is a good number.", least=MIN_PICTURES)
        return Finding(code="too_few", topic=topic, severity=STOP, words=words, advice=advice)
    if count < FEW_PICTURES:
        advice = message("check.few.advice", "So few are soon memorised, and the best step is uncertain. About 20 is a good number.")
        return Finding(code="few", topic=topic, severity=WARNING, words=words, advice=advice)
    if count < ENOUGH_PICTURES:
        advice = message("check.rather_few.advice", "It will do. About 20 of different places, clothes and angles is better.")
        return Finding(code="rather_few", topic=topic, severity=NOTE, words=words, advice=advice)
    return Finding(code="enough", topic=topic, severity=GOOD, words=words)


def _readable(skipped: dict[str, str]) -> Finding:
    topic = message("topic.readable", "Readable")
    if not skipped:
        return Finding(code="readable", topic=topic, severity=GOOD, words="Every picture can be read.")
    return Finding(
        code="unreadable", topic=topic, severity=WARNING, pictures=tuple(skipped),
        words=counted(
            "check.unreadable", len(skipped), "{count} picture can't be read and is left out. {reasons}",
            "{count} pictures can't be read and are left out. {reasons}", reasons=" ".join(list(skipped.values())[:3]),
        ),
        advice=message("check.unreadable.advice", "Save them anew as PNG or JPEG from the originals, or remove them."),
    )


def _sizes(pixels: dict[str, int], resolution: int) -> Finding:
    topic, area = message("topic.size", "Size"), resolution * resolution
    tiny = tuple(name for name, count in pixels.items() if count < TINY_SHARE * area)
    small = tuple(name for name, count in pixels.items() if TINY_SHARE * area <= count < SMALL_SHARE * area)
    if tiny:
        return Finding(
            code="tiny", topic=topic, severity=WARNING, pictures=tiny,
            words=counted(
                "check.tiny", len(tiny), "{count} picture has less than a quarter of the training size {resolution} x {resolution}: {names}.",
                "{count} pictures have less than a quarter of the training size {resolution} x {resolution}: {names}.",
                resolution=resolution, names=name_list(list(tiny)),
            ),
            advice=message(
                "check.tiny.advice",
                "Their lack of detail is learned too. Take larger originals, enlarge them with an upscale model, or train at a smaller resolution.",
            ),
        )
    if small:
        return Finding(
            code="small", topic=topic, severity=NOTE, pictures=small,
            words=counted(
                "check.small", len(small), "{count} picture is smaller than the training size {resolution} x {resolution}: {names}.",
                "{count} pictures are smaller than the training size {resolution} x {resolution}: {names}.",
                resolution=resolution, names=name_list(list(small)),
            ),
            advice=message("check.small.advice", "They are trained at their own size. Larger originals hold more detail."),
        )
    return Finding(code="sizes", topic=topic, severity=GOOD, words=f"Every picture has enough pixels for {resolution} x {resolution}.")


def _sharpness(qualities: dict[str, Quality]) -> Finding:
    blurred = tuple(name for name, quality in qualities.items() if quality.is_blurred)
    topic = message("topic.sharpness", "Sharpness")
    if blurred:
        worst = max(qualities[name].blur_px for name in blurred)
        return Finding(
            code="blurred", topic=topic, severity=WARNING, pictures=blurred,
            words=counted(
                "check.blurred", len(blurred), "{count} picture is blurred even where it is sharpest (by up to {worst} pixels): {names}.",
                "{count} pictures are blurred even where they are sharpest (by up to {worst} pixels): {names}.",
                worst=f"{worst:.1f}", names=name_list(list(blurred)),
            ),
            advice=message(
                "check.blurred.advice",
                "Blur is learned as part of the character. Remove them or take better ones; sharpening filters don't bring detail back.",
            ),
        )
    return Finding(code="sharp", topic=topic, severity=GOOD, words="No picture is blurred.")


def _compression(qualities: dict[str, Quality]) -> Finding:
    pressed = tuple(name for name, quality in qualities.items() if quality.is_over_compressed)
    topic = message("topic.compression", "Compression")
    if pressed:
        return Finding(
            code="over_compressed", topic=topic, severity=WARNING, pictures=pressed,
            words=counted(
                "check.over_compressed", len(pressed), "{count} picture shows the blocks of strong JPEG compression: {names}.",
                "{count} pictures show the blocks of strong JPEG compression: {names}.", names=name_list(list(pressed)),
            ),
            advice=message("check.over_compressed.advice", "The blocks are learned too, and saving as PNG does not remove them. Take the originals."),
        )
    return Finding(code="compression", topic=topic, severity=GOOD, words="No picture shows JPEG blocks.")


def _named_groups(dataset: Dataset) -> list[list[str]]:
    stills = [picture for picture in dataset.pictures if picture.clip is None]
    return [[picture.relative_path for picture in group] for group in near_duplicate_groups(stills)]


def _duplicates(all_groups: list[list[str]], count: int) -> Finding:
    """`all_groups`: names of pictures that look the same; one that has no double is a group too."""
    topic, groups = message("topic.duplicates", "Duplicates"), [group for group in all_groups if len(group) > 1]
    if not groups:
        return Finding(code="no_duplicates", topic=topic, severity=GOOD, words="No two pictures look the same.")
    names = tuple(name for group in groups for name in group)
    spare = len(names) - len(groups)
    told = "; ".join(" = ".join(group[:4]) + (" ..." if len(group) > 4 else "") for group in groups[:3])
    if len(groups) > 3:
        told = counted("names.more_groups", len(groups) - 3, "{names} and {count} more group", "{names} and {count} more groups", names=told)
    return Finding(
        code="near_duplicates", topic=topic, severity=WARNING if spare * 5 >= count else NOTE, pictures=names,
        words=counted(
            "check.near_duplicates", len(groups), "{pictures} pictures look like another one, in {count} group: {names}.",
            "{pictures} pictures look like another one, in {count} groups: {names}.", pictures=len(names), names=told,
        ),
        advice=message(
            "check.near_duplicates.advice",
            "Each counts as often as it is there. Keep the best of each group. Split Dataset keeps a group on one side, so nothing is measured on a copy.",
        ),
    )


def _shape(picture: Picture) -> str:
    ratio = picture.width / picture.height
    return "square" if 0.87 <= ratio <= 1.15 else "landscape" if ratio > 1 else "portrait"


def _shapes(pictures: tuple[Picture, ...]) -> Finding:
    long = tuple(p.relative_path for p in pictures if max(p.width, p.height) > LONG_RATIO * min(p.width, p.height))
    topic, counts = message("topic.shapes", "Shapes"), {shape: count for shape, count in _shape_counts(pictures).items() if count}
    if long:
        mix = Listed([_shape_words(shape, count) for shape, count in counts.items()], last=", ")
        return Finding(
            code="long_shapes", topic=topic, severity=NOTE, pictures=long,
            words=message("check.long_shapes", "{mix}. Much longer than wide or the other way: {names}.", mix=mix, names=name_list(list(long))),
            advice=message("check.long_shapes.advice", "Crop these to what matters."),
        )
    return Finding(code="shapes", topic=topic, severity=GOOD, words=", ".join(f"{count} {shape}" for shape, count in counts.items()) + ".")


def _shape_words(shape: str, count: int) -> Message:
    return {
        "portrait": message("shape.portrait", "{count} portrait", count=count), "square": message("shape.square", "{count} square", count=count),
        "landscape": message("shape.landscape", "{count} landscape", count=count),
    }[shape]


def _shape_counts(pictures: tuple[Picture, ...]) -> dict[str, int]:
    shapes = [_shape(picture) for picture in pictures]
    return {shape: shapes.count(shape) for shape in ("portrait", "square", "landscape")}


# ---- training ------------------------------------------------------------------------


def _split_sizes(dataset: Dataset, distinct: int) -> tuple[int, int]:
    """Pictures to train on and held out, as the split is or would be."""
    try:
        split = dataset.split or split_dataset(dataset).split
    except PistachioError:  # nothing can be held out; the number of pictures is told by its own finding
        return distinct, 0
    return len(split.train), len(split.held_out)


def steps_for(train: int, num_steps: int) -> int:
    return TrainConfig(num_steps=num_steps).resolve_num_steps(max(1, train)).num_steps


def _steps(train: int, num_steps: int, batch: int = 1) -> Finding:
    """`batch`: pictures in one step."""
    steps = steps_for(train, num_steps)
    each = steps * batch / max(1, train)
    topic = message("topic.steps", "Steps")
    if not num_steps:
        words = f"{steps} steps (automatic) at batch size {batch} show each of {plural(train, 'picture')} about {each:.0f} times."
        return Finding(code="steps", topic=topic, severity=GOOD, words=words)
    words = counted(
        "check.steps", train, "{steps} steps at batch size {batch} show each of {count} picture about {times} times.",
        "{steps} steps at batch size {batch} show each of {count} pictures about {times} times.", steps=steps, batch=batch, times=f"{each:.0f}",
    )
    if each < FEW_STEPS_EACH:
        advice = message(
            "check.few_steps.advice",
            "That is little for a likeness: about 100 times each is usual. Set the steps to 0 on Train LoRA for an automatic number.",
        )
        return Finding(code="few_steps", topic=topic, severity=WARNING, words=words, advice=advice)
    if each > MANY_STEPS_EACH:
        advice = message("check.many_steps.advice", "Early stop will most likely end it sooner. About 100 times each is usual.")
        return Finding(code="many_steps", topic=topic, severity=NOTE, words=words, advice=advice)
    return Finding(code="steps", topic=topic, severity=GOOD, words=words)


def _disk(count: int, resolution: int, machine: Machine) -> Finding:
    latent_bytes = 16 * (resolution // 8) ** 2 * 2
    needed = count * (latent_bytes + CONDITION_BYTES) + (CHECKPOINTS + 3) * (machine.lora_bytes or UNKNOWN_LORA_BYTES)
    topic, told = message("topic.disk", "Disk"), f"{needed / 1e9:.1f}"
    if machine.free_disk_bytes is None:
        return Finding(
            code="disk_unknown", topic=topic, severity=NOTE,
            words=message("check.disk_unknown", "Cache and checkpoints need up to about {needed} GB; how much is free is not known.", needed=told),
            advice=message("check.disk_unknown.advice", "Look at the disk of ComfyUI's output folder before a long run."),
        )
    words = message(
        "check.disk", "Up to about {needed} GB of cache and checkpoints; {free} GB free.", needed=told, free=f"{machine.free_disk_bytes / 1e9:.1f}",
    )
    if needed > machine.free_disk_bytes:
        advice = message("check.disk_full.advice", "Free some space on the disk of ComfyUI's output folder, or the run stops when it is full.")
        return Finding(code="disk_full", topic=topic, severity=WARNING, words=words, advice=advice)
    return Finding(code="disk", topic=topic, severity=GOOD, words=words)


def _memory(machine: Machine) -> tuple[Finding, ...]:
    """Nothing where the model is not known."""
    if machine.model_bytes is None or machine.device_bytes is None:
        return ()
    needed = machine.model_bytes + 4 * (machine.lora_bytes or 0)
    topic, words = message("topic.memory", "Memory"), message(
        "check.memory", "The model's weights and the LoRA's state need {needed} GB before any picture; the {device} has {size} GB in all.",
        needed=f"{needed / 1e9:.1f}", device=machine.device, size=f"{machine.device_bytes / 1e9:.1f}",
    )
    if needed > machine.device_bytes:
        advice = message("check.memory_small.advice", "Load the base model in a smaller form (fp8 or GGUF), or choose a smaller model.")
        return (Finding(code="memory_small", topic=topic, severity=WARNING, words=words, advice=advice),)
    if needed > 0.8 * machine.device_bytes:
        advice = message(
            "check.memory_tight.advice",
            "It is tight. Leave block_checkpointing on and the batch size at 1, and lower the resolution if memory runs out.",
        )
        return (Finding(code="memory_tight", topic=topic, severity=NOTE, words=words, advice=advice),)
    return (Finding(code="memory", topic=topic, severity=GOOD, words=words),)


def _facts(
    dataset: Dataset, detected: dict[str, str], qualities: dict[str, Quality], train: int, held_out: int, num_steps: int, resolution: int, trigger: str
) -> dict:
    framings = [detected.get(p.relative_path) or framing(p.caption or "") or "unknown" for p in dataset.pictures]
    return {
        "folder": Path(dataset.folder).name, "pictures": len(dataset.pictures), "train": train, "held_out": held_out, "steps": steps_for(train, num_steps),
        "resolution": resolution, "trigger_word": trigger,
        "shapes": _shape_counts(dataset.pictures),
        "framing": {kind: framings.count(kind) for kind in ("close-up", "half body", "full body", "unknown")}, "framing_detected": len(detected),
        "caption_words": [len((picture.caption or "").split()) for picture in dataset.pictures],
        "blur_px": [None if quality.blur_px is None else round(quality.blur_px, 2) for quality in qualities.values()],
    }
