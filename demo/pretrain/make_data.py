"""Draws the pretraining pictures into memory-mapped arrays.

    python -m demo.pretrain.make_data --out FOLDER [--train 32000] [--held-out 1024]

Per set: NAME.npy (uint8 pictures), NAME_labels.npy (six attributes, four scene values, name or -1)
and NAME_boxes.npy (eyes and mouth boxes, pixels). A fifth of the pictures show the named people.
"""

from __future__ import annotations

import argparse
import random
from multiprocessing import Pool
from pathlib import Path

import numpy as np

from ..captions import NAMES, base_identity, named_identities
from ..portraits import ATTRIBUTES, SCENE_VALUES, SIZE_PX, draw_portrait, random_scene

NAMED_SHARE = 0.2


def _draw_chunk(job: tuple[str, str, int, int, int]) -> int:
    folder, name, start, stop, seed = job
    rng = random.Random(f"{seed}-{start}")
    named = named_identities()
    pictures = np.load(f"{folder}/{name}.npy", mmap_mode="r+")
    labels = np.load(f"{folder}/{name}_labels.npy", mmap_mode="r+")
    boxes = np.load(f"{folder}/{name}_boxes.npy", mmap_mode="r+")
    for row in range(start, stop):
        person = rng.randrange(len(NAMES)) if rng.random() < NAMED_SHARE else -1
        identity = named[NAMES[person]] if person >= 0 else base_identity(rng)
        scene = random_scene(rng)
        image, box = draw_portrait(identity, scene, rng)
        pictures[row] = np.asarray(image)
        labels[row] = (
            [values.index(getattr(identity, key)) for key, values in ATTRIBUTES.items()]
            + [values.index(getattr(scene, key)) for key, values in SCENE_VALUES.items()] + [person]
        )
        boxes[row] = (*box["eyes"], *box["mouth"])
    return stop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=32000)
    parser.add_argument("--held-out", type=int, default=1024)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = []
    for name, count, seed in (("held_out", args.held_out, 2), ("train", args.train, 1)):
        for suffix, shape, dtype in (("", (SIZE_PX, SIZE_PX, 3), "uint8"), ("_labels", (11,), "int8"), ("_boxes", (8,), "float32")):
            np.lib.format.open_memmap(args.out / f"{name}{suffix}.npy", mode="w+", dtype=dtype, shape=(count, *shape))
        jobs += [(str(args.out), name, start, min(start + 500, count), seed) for start in range(0, count, 500)]
    with Pool(args.processes) as pool:
        for stop in pool.imap(_draw_chunk, jobs):
            print("drawn up to", stop, flush=True)


if __name__ == "__main__":
    main()
