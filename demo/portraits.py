"""Draws the demo's cartoon portraits: 96x96, thick lines, large eyes, from an identity and a scene.

An Identity is six attributes that belong to a person; a Scene is what changes from picture to
picture. Everything is drawn at six times the size with Pillow and reduced. Knows nothing about
captions' use, models or training; `captions.py` puts identities and scenes into words.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE_PX = 96
SUPERSAMPLE = 6
INK = (42, 30, 46)

HAIR_COLOURS = {
    "black": (58, 52, 70), "brown": (128, 78, 44), "blonde": (247, 205, 84), "red": (222, 82, 44),
    "white": (236, 236, 244), "blue": (62, 116, 222), "pink": (244, 130, 184), "green": (134, 196, 92),
}
HAIR_STYLES = ("pixie", "bob", "long", "bun", "curly", "pigtails")
FACES = ("round", "slim", "square")
SKINS = {"pale": (255, 226, 209), "tan": (236, 186, 140), "brown": (190, 126, 84), "dark": (120, 76, 54)}
EYES = {"brown": (122, 66, 24), "blue": (50, 140, 236), "green": (56, 178, 84)}
ACCESSORIES = ("none", "glasses", "earrings", "flower", "scarf", "headphones")

BACKGROUNDS = {
    "blue": (150, 200, 244), "green": (176, 220, 168), "yellow": (250, 228, 146), "pink": (250, 192, 208),
    "purple": (200, 180, 238), "orange": (250, 186, 130), "teal": (124, 208, 200), "grey": (208, 210, 218),
}
EXPRESSIONS = ("happy", "laughing", "surprised", "sad")
SHIRTS = {
    "red": (218, 66, 62), "blue": (58, 106, 206), "green": (72, 160, 88), "yellow": (244, 196, 54),
    "white": (246, 246, 246), "black": (66, 62, 76),
}
FRAMINGS = {"close-up": 1.18, "bust": 1.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """The six attributes that make a person; see ATTRIBUTES for their values."""

    hair_colour: str
    hair_style: str
    face: str
    skin: str
    eyes: str
    accessory: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What a caption says of one picture, whoever is in it."""

    background: str
    expression: str
    shirt: str
    framing: str


ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "hair_colour": tuple(HAIR_COLOURS), "hair_style": HAIR_STYLES, "face": FACES,
    "skin": tuple(SKINS), "eyes": tuple(EYES), "accessory": ACCESSORIES,
}
SCENE_VALUES: dict[str, tuple[str, ...]] = {
    "background": tuple(BACKGROUNDS), "expression": EXPRESSIONS, "shirt": tuple(SHIRTS), "framing": tuple(FRAMINGS),
}


def random_identity(rng: random.Random) -> Identity:
    return Identity(**{name: rng.choice(values) for name, values in ATTRIBUTES.items()})


def random_scene(rng: random.Random) -> Scene:
    return Scene(**{name: rng.choice(values) for name, values in SCENE_VALUES.items()})


def _shade(colour, factor):
    """Towards black below 1, towards white above."""
    if factor <= 1:
        return tuple(int(c * factor) for c in colour)
    return tuple(int(c + (255 - c) * (factor - 1)) for c in colour)


def _ellipse(cx, cy, rx, ry, start=0.0, end=360.0, count=32):
    angles = np.radians(np.linspace(start, end, count))
    return np.stack([cx + rx * np.cos(angles), cy + ry * np.sin(angles)], 1)


def _curve(points, per_segment=6, closed=False):
    """Catmull-Rom through the points."""
    p = np.asarray(points, float)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    t = np.linspace(0, 1, per_segment, endpoint=False)[:, None]
    parts = []
    for a, b, c, d in zip(p, p[1:], p[2:], p[3:]):
        parts.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    if not closed:
        parts.append(p[-2:-1])
    return np.concatenate(parts)


class _Pen:
    """Draws in face units (about one pixel each at scale 1) around the head's centre."""

    def __init__(self, image, centre, scale, tilt_deg):
        self.draw = ImageDraw.Draw(image)
        self.centre = np.asarray(centre, float)
        self.scale = scale
        cos, sin = math.cos(math.radians(tilt_deg)), math.sin(math.radians(tilt_deg))
        self.turn = np.array([[cos, sin], [-sin, cos]])

    def _map(self, points):
        points = (np.asarray(points, float) @ self.turn * self.scale + self.centre) * SUPERSAMPLE
        return [tuple(p) for p in points]

    def fill(self, points, colour, line=2.0):
        """A filled shape with an ink outline `line` units wide, centred on its edge."""
        mapped = self._map(points)
        self.draw.polygon(mapped, fill=colour)
        if line:
            self._stroke(mapped + mapped[:2], INK, line)

    def line(self, points, width=2.0, colour=INK, caps=True):
        mapped = self._map(points)
        self._stroke(mapped, colour, width)
        if caps:
            r = width * self.scale * SUPERSAMPLE / 2
            for x, y in (mapped[0], mapped[-1]):
                self.draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)

    def _stroke(self, mapped, colour, width):
        self.draw.line(mapped, fill=colour, width=max(1, round(width * self.scale * SUPERSAMPLE)), joint="curve")

    def blobs(self, circles, colour, line=2.0):
        """The union of circles (x, y, r), outlined as one."""
        for x, y, r in circles:
            self.fill(_ellipse(x, y, r + line / 2, r + line / 2), INK, 0)
        for x, y, r in circles:
            self.fill(_ellipse(x, y, r - line / 2, r - line / 2), colour, 0)


def _face_outline(face):
    """Half-widths by height make the jaw: wide and low, narrow with a chin, or square."""
    if face == "round":
        right = [(0, -21), (13, -19), (21.5, -10), (24, 3), (20.5, 14), (11.5, 20.5), (0, 22)]
    elif face == "slim":
        right = [(0, -21), (11, -19), (18.5, -11), (19.5, 1), (16, 13), (8, 22.5), (0, 27)]
    else:
        right = [(0, -21), (13, -19.5), (20.5, -12), (22, 4), (21.5, 15), (16, 22), (0, 23)]
    left = [(-x, y) for x, y in right[-2:0:-1]]
    return _curve(right + left, closed=True)


def _chin_y(face):
    return {"round": 22, "slim": 27, "square": 23}[face]


def _back_hair(pen, style, colour):
    if style == "long":
        half = [(0, -29), (17, -25), (27, -12), (29, 6), (30, 24), (33, 40), (22, 46), (10, 44)]
        pen.fill(_curve(half + [(-x, y) for x, y in half[::-1][:-1]], closed=True), colour)
    elif style == "bob":
        half = [(0, -29), (17, -25), (27, -12), (30, 4), (30, 17), (25, 22), (12, 22)]
        pen.fill(_curve(half + [(-x, y) for x, y in half[::-1][:-1]], closed=True), colour)
    elif style == "bun":
        pen.fill(_ellipse(0, -31, 12, 10.5), colour)
        pen.line(_ellipse(0, -31, 6.5, 5, 190, 320), 1.6, _shade(colour, 0.72))
        pen.fill(_ellipse(0, -7, 25, 21), colour)
    elif style == "curly":
        ring = [(27 * math.cos(a), -7 + 23 * math.sin(a), 10.5) for a in np.radians(np.arange(150, 391, 30))]
        pen.blobs(ring + [(-25.5, 12, 8.5), (25.5, 12, 8.5), (0, -12, 24)], colour)
    elif style == "pigtails":
        for side in (-1, 1):
            tail = [(side * x, y) for x, y in [(21, -15), (32, -19), (40, -8), (41, 10), (36, 25), (31, 13), (25, 0)]]
            pen.fill(_curve(tail, closed=True), colour)
            pen.line([(side * 22.5, -14), (side * 25.5, -2)], 4.6, INK)
            pen.line([(side * 22.5, -14), (side * 25.5, -2)], 2.2, (250, 90, 90))
        pen.fill(_ellipse(0, -7, 24.5, 20), colour)
    else:  # pixie
        pen.fill(_ellipse(0, -7, 25, 21), colour)


def _front_hair(pen, style, colour, face):
    """The fringe; its lower edge differs by style so that a style shows in close-up too."""
    side = 21.5 if face == "slim" else 25.0
    crown = [(-side, -4), (-side + 1, -14), (-14, -25), (0, -29), (14, -25), (side - 1, -14), (side, -4)]
    if style == "pixie":
        edge = [(side - 4.5, -7), (16, -13), (10, -7), (5, -14), (-1, -7), (-7, -14), (-13, -6), (-side + 4, -11)]
    elif style == "bob":
        edge = [(side - 3.5, -3), (side - 4.5, -10), (10, -9.5), (0, -9), (-10, -9.5), (-side + 4.5, -10), (-side + 3.5, -3)]
    elif style == "long":
        edge = [(side - 2.5, 4), (side - 4, -8), (9, -14), (0, -22), (-9, -14), (-side + 4, -8), (-side + 2.5, 4)]
    elif style == "bun":
        edge = [(side - 3.5, -8), (13, -16), (0, -18.5), (-13, -16), (-side + 3.5, -8)]
    elif style == "curly":
        pen.blobs([(x, y, 7.2) for x, y in [(-20, -12), (-10.5, -18), (0, -20.5), (10.5, -18), (20, -12)]], colour)
        return
    else:  # pigtails: a side parting
        edge = [(side - 3.5, -8), (12, -12), (-3, -22), (-10, -13), (-side + 3.5, -7)]
    if style in ("pixie", "pigtails"):
        lower = np.asarray(edge, float) if style == "pixie" else _curve(edge)
    else:
        lower = _curve(edge)
    pen.fill(np.concatenate([_curve(crown), lower]), colour)
    shine = _shade(colour, 1.35) if sum(colour) < 640 else _shade(colour, 0.88)
    pen.line(_ellipse(0, -7, 18.5, 18, 212, 246), 2.4, shine)


def _eyes(pen, identity, scene, gaze):
    tall = 1.12 if scene.expression == "surprised" else 0.94 if scene.expression == "sad" else 1.0
    colour = EYES[identity.eyes]
    brow = _shade(HAIR_COLOURS[identity.hair_colour], 0.55)
    for side in (-1, 1):
        x, y = side * 9.8, 0.5
        pen.fill(_ellipse(x, y, 6.6, 7.6 * tall), (255, 255, 255), 1.8)
        ix, iy = x + gaze[0], y + 0.8 + gaze[1]
        pen.fill(_ellipse(ix, iy, 5.0, 5.6), colour, 1.0)
        pen.fill(_ellipse(ix, iy + 0.2, 2.4, 2.9), INK, 0)
        pen.fill(_ellipse(ix - 1.7, iy - 2.3, 1.75, 1.75), (255, 255, 255), 0)
        pen.line(_ellipse(x, y, 6.6, 7.6 * tall, 195, 345), 2.7)
        pen.line([(x + side * 6.0, y - 3.2), (x + side * 8.8, y - 5.2)], 1.8)
        if scene.expression == "sad":
            arch = [(x - side * 5, y - 12.6), (x, y - 11.6), (x + side * 5.5, y - 9.4)]
        elif scene.expression == "surprised":
            arch = [(x - side * 5, y - 12.2), (x, y - 14.2), (x + side * 5.5, y - 12.4)]
        else:
            arch = [(x - side * 5, y - 10.4), (x, y - 11.8), (x + side * 5.5, y - 10.2)]
        pen.line(_curve(arch), 2.2, brow)


def _mouth(pen, scene, chin):
    y = 13.4 + (chin - 22) * 0.45
    if scene.expression == "happy":
        pen.line(_curve([(-8, y - 1.8), (-4.2, y + 1.8), (0, y + 3.0), (4.2, y + 1.8), (8, y - 1.8)]), 2.5)
    elif scene.expression == "laughing":
        shape = _curve([(-9, y - 2.6), (0, y - 1.8), (9, y - 2.6), (6.4, y + 3.8), (0, y + 6), (-6.4, y + 3.8)], closed=True)
        pen.fill(shape, (150, 34, 52), 2.0)
        pen.fill(_ellipse(0, y + 3.6, 4.2, 2.0), (248, 118, 128), 0)
        pen.line([(-6.8, y - 1.0), (6.8, y - 1.0)], 2.0, (255, 255, 255))
    elif scene.expression == "surprised":
        pen.fill(_ellipse(0, y + 1.4, 4.2, 5.2), (150, 34, 52), 2.0)
    else:
        pen.line(_curve([(-7, y + 3.6), (-3.5, y + 0.7), (0, y - 0.2), (3.5, y + 0.7), (7, y + 3.6)]), 2.5)


def _face(pen, identity, scene, gaze):
    skin = SKINS[identity.skin]
    outline = _face_outline(identity.face)
    ear_x = 20 if identity.face == "slim" else 23.5
    if identity.accessory != "headphones":
        for side in (-1, 1):
            pen.fill(_ellipse(side * ear_x, 3, 4.6, 5.6), skin)
    pen.fill(outline, skin, 2.2)
    blush = tuple((3 * c + b) // 4 for c, b in zip(skin, (255, 70, 90)))
    cheek_x = 13 if identity.face == "slim" else 15.5
    for side in (-1, 1):
        pen.fill(_ellipse(side * cheek_x, 10.5, 3.8, 2.6), blush, 0)
    pen.line(_curve([(-1.8, 8.2), (0, 9.4), (1.8, 8.2)]), 1.6, _shade(skin, 0.62))
    _mouth(pen, scene, _chin_y(identity.face))
    _eyes(pen, identity, scene, gaze)


def _body(pen, identity, scene):
    skin, shirt = SKINS[identity.skin], SHIRTS[scene.shirt]
    chin = _chin_y(identity.face)
    half = [(0, chin + 7.5), (10, chin + 7.5), (22, chin + 11), (34, chin + 18.5), (39, chin + 50)]
    pen.fill(np.concatenate([_curve(half), _curve([(-x, y) for x, y in half[::-1]])]), shirt, 2.2)
    pen.fill([(-7.5, 12), (7.5, 12), (7.5, chin + 8), (0, chin + 14), (-7.5, chin + 8)], skin)
    pen.line(_curve([(-9.5, chin + 8.5), (-5.5, chin + 14), (0, chin + 16.5), (5.5, chin + 14), (9.5, chin + 8.5)]), 2.6, _shade(shirt, 0.72))
    pen.fill([(-6.3, 14), (6.3, 14), (6.3, chin + 4), (-6.3, chin + 4)], _shade(skin, 0.84), 0)
    if identity.accessory == "scarf":
        wrap = _curve([(-17, chin + 3), (0, chin + 6.5), (17, chin + 3), (19, chin + 10), (0, chin + 17), (-19, chin + 10)], closed=True)
        end = _curve([(4, chin + 12), (14, chin + 11), (17, chin + 30), (7, chin + 31)], per_segment=3, closed=True)
        pen.fill(end, (250, 120, 60))
        pen.fill(wrap, (250, 120, 60))
        for x in (-11, 0, 11):
            y = chin + 4.6 + (1.6 if x == 0 else 0)
            pen.line([(x - 1, y + 0.6), (x + 1, y + 7.4)], 2.6, (255, 226, 150), caps=False)


def _accessory(pen, identity):
    kind = identity.accessory
    ear_x = 20 if identity.face == "slim" else 23.5
    if kind == "glasses":
        for side in (-1, 1):
            pen.line(_ellipse(side * 9.9, 0.8, 8.9, 9.2), 2.0, (196, 40, 60), caps=False)
            pen.line([(side * 18.6, -1), (side * ear_x, -2.4)], 2.0, (196, 40, 60))
        pen.line([(-1.6, -0.8), (1.6, -0.8)], 2.0, (196, 40, 60))
    elif kind == "earrings":
        for side in (-1, 1):
            pen.line(_ellipse(side * (ear_x + 0.8), 14, 4.4, 5.2), 4.2, INK, caps=False)
            pen.line(_ellipse(side * (ear_x + 0.8), 14, 4.4, 5.2), 2.2, (255, 208, 60), caps=False)
    elif kind == "flower":
        x, y = 17, -17
        petals = [(x + 5.4 * math.cos(a), y + 5.4 * math.sin(a), 4.6) for a in np.radians(np.arange(18, 378, 72))]
        pen.blobs(petals, (255, 255, 255), 1.8)
        pen.fill(_ellipse(x, y, 3.4, 3.4), (255, 170, 40), 1.2)
    elif kind == "headphones":
        band = _ellipse(0, -2, 27.5, 29.5, 190, 350)
        pen.line(band, 6.4, INK)
        pen.line(band, 3.2, (120, 84, 214))
        for side in (-1, 1):
            pen.fill(_ellipse(side * 25.5, 3, 6.2, 9.4), (120, 84, 214))
            pen.line([(side * 26.5, -1.5), (side * 26.5, 6)], 2.0, (190, 168, 250))


def draw_portrait(identity: Identity, scene: Scene, rng: random.Random) -> tuple[Image.Image, dict[str, tuple[float, ...]]]:
    """The picture, and the boxes (left, top, right, bottom) in pixels of its `eyes` and `mouth`."""
    full = SIZE_PX * SUPERSAMPLE
    background = BACKGROUNDS[scene.background]
    image = Image.new("RGB", (full, full), background)
    scale = FRAMINGS[scene.framing] * rng.uniform(0.965, 1.035)
    lift = 1.5 if scene.framing == "close-up" else -2.0
    centre = np.array([48 + rng.uniform(-2.5, 2.5), 47 + lift + rng.uniform(-1.5, 1.5)])
    tilt = rng.uniform(-5, 5)
    gaze = (rng.uniform(-0.9, 0.9), rng.uniform(-0.4, 0.4))
    body, head = _Pen(image, centre, scale, tilt * 0.2), _Pen(image, centre, scale, tilt)
    disc = _Pen(image, (48, 46), 1.0, 0)
    disc.fill(_ellipse(0, 0, 42, 42), _shade(background, 1.38), 0)
    hair = HAIR_COLOURS[identity.hair_colour]
    _back_hair(head, identity.hair_style, hair)
    _body(body, identity, scene)
    _face(head, identity, scene, gaze)
    _front_hair(head, identity.hair_style, hair, identity.face)
    _accessory(head, identity)
    image = image.resize((SIZE_PX, SIZE_PX), Image.LANCZOS)

    def box(corners):
        points = np.asarray(head._map(corners)) / SUPERSAMPLE
        return (*points.min(0), *points.max(0))

    mouth_y = 13.4 + (_chin_y(identity.face) - 22) * 0.45
    return image, {"eyes": box([(-18, -14), (18, 9)]), "mouth": box([(-9, mouth_y - 5), (9, mouth_y + 7)])}
