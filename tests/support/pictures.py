"""Small drawn pictures with captions, for tests that need a folder of them.

Every picture differs from the others by colour, shape and place; nothing is random beyond the seed.
"""

import random
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (50, 70, 200), "yellow": (220, 200, 40), "purple": (140, 50, 170)}
SHAPES = ("circle", "square", "triangle")


def draw(index: int, *, size: tuple[int, int] = (64, 64), seed: int = 0) -> tuple[Image.Image, str]:
    """RGB picture of width x height and its caption."""
    generator = random.Random(f"{seed}-{index}")
    name = generator.choice(list(COLOURS))
    shape = SHAPES[index % len(SHAPES)]
    shade = generator.randrange(170, 250)
    width, height = size
    image = Image.new("RGB", size, (shade, shade - generator.randrange(40), shade - generator.randrange(40)))
    pen = ImageDraw.Draw(image)
    radius = min(size) * generator.uniform(0.2, 0.35)
    x, y = generator.uniform(radius, width - radius), generator.uniform(radius, height - radius)
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=COLOURS[name])
    elif shape == "square":
        pen.rectangle(box, fill=COLOURS[name])
    else:
        pen.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], fill=COLOURS[name])
    return image, f"a drawing of a {name} {shape} on a light wall"


def write_folder(folder: Path, count: int = 6, *, size: tuple[int, int] = (64, 64), captions: bool = True, trigger_word: str = "", seed: int = 0) -> Path:
    """`picture-01.png`, ... and their `.txt` captions, led by the trigger word when there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image, caption = draw(index, size=size, seed=seed)
        path = folder / f"picture-{index + 1:02d}.png"
        image.save(path)
        if captions:
            path.with_suffix(".txt").write_text(f"{trigger_word}, {caption}" if trigger_word else caption, encoding="utf-8")
    return folder
