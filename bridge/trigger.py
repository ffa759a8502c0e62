"""What the loaded text encoders make of a trigger word, by their own tokenizers, and what the model draws for it.

"Known" means a token of its own: tokenizers give those to the words and names that were frequent in the text they were made
from, in the order of frequency. Knows nothing of the canvas.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import comfy.model_sampling
import comfy.sample
import comfy.sd1_clip
import torch
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..dataset.trigger_words import Collisions, find_collisions, neighbours, pronounceable_words, touches_captions
from ..training.errors import PistachioError
from .encode import text_encoder
from .progress import check_interrupted

NUM_SUGGESTIONS = 10
NUM_CANDIDATES = 400  # looked at for ten suggestions
NUM_PREVIEWS = 4
FEW_TOKENS, MANY_TOKENS = 4, 6  # of one tokenizer: a suggestion has no more than the first; more than the second use the prompt up
RARE_SHARE = 0.9  # of a vocabulary: a word behind it was seen seldom
COMMON_SHARE = 0.3
TRIGGER_PLACEHOLDER = "[trigger]"
NOTHING_DRAWN = ExecutionBlocker(None)  # what waits for pictures is left out, without an error
_MARKS = ("</w>", "▁", "Ġ", "##")


@dataclass(frozen=True)
class Tokenizer:
    """One of a CLIP's tokenizers."""

    name: str  # clip_l, t5xxl, ...
    host: Any  # comfy.sd1_clip.SDTokenizer

    def ids(self, text: str) -> list[int]:
        """Without start, end and padding."""
        end = -1 if self.host.tokenizer_adds_end_token else None
        return list(self.host.tokenizer(text)["input_ids"][self.host.tokens_start : end])

    def word_ids(self, word: str) -> list[int]:
        """As the word is read in the middle of a caption, after a blank."""
        before, both = self._before, self.ids(f"a {word}")
        return both[len(before) :] if both[: len(before)] == before else self.ids(word)

    def pieces(self, word: str) -> tuple[str, ...]:
        return tuple(_bare(self.host.inv_vocab.get(token, f"#{token}")) for token in self.word_ids(word))

    @cached_property
    def _before(self) -> list[int]:
        return self.ids("a")

    @cached_property
    def size(self) -> int:
        return len(self.host.inv_vocab)

    @cached_property
    def whole_words(self) -> dict[str, int]:
        """Words that are one token of their own -> place in the vocabulary, in lower case."""
        vocabulary = self.host.inv_vocab.items()
        marked = [(token, piece) for token, piece in vocabulary if piece.endswith("</w>") or piece.startswith(("▁", "Ġ"))]
        words: dict[str, int] = {}
        for token, piece in sorted(marked):
            if len(_bare(piece)) > 1:
                words.setdefault(_bare(piece).casefold(), token)
        return words


def _bare(piece: str) -> str:
    for mark in _MARKS:
        piece = piece.replace(mark, "")
    return piece or "▁"


def tokenizers(clip) -> tuple[Tokenizer, ...]:
    """Every tokenizer of the CLIP, in its own order."""
    found: dict[str, Tokenizer] = {}

    def look(owner: Any, name: str, depth: int) -> None:
        if isinstance(owner, comfy.sd1_clip.SDTokenizer):
            # "clip_umt5xxl" is umt5xxl in the host's own tokens; "clip_l" keeps its name
            short = name.removeprefix("clip_") if len(name) > len("clip_l") else name
            found.setdefault(short, Tokenizer(short, owner))
        elif depth and type(owner).__module__.startswith("comfy."):
            for attribute, value in vars(owner).items():
                look(value, attribute, depth - 1)

    look(getattr(clip, "tokenizer", None), "tokenizer", 3)
    if not found:
        raise PistachioError("This CLIP has no tokenizer that can be read. Connect the CLIP that the model is used with to Check Trigger.")
    return tuple(found.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """One word of the trigger in one tokenizer."""

    tokenizer: str
    word: str
    pieces: tuple[str, ...]
    place: int | None  # of a word that is one token: its place by frequency
    vocabulary_size: int

    @property
    def is_known(self) -> bool:
        return self.place is not None and self.place < RARE_SHARE * self.vocabulary_size


@dataclass(frozen=True, kw_only=True, slots=True)
class TriggerReport:
    trigger: str
    readings: tuple[Reading, ...]
    collisions: Collisions | None  # None: no captions were given
    suggestions: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        return not self.problems

    @property
    def problems(self) -> tuple[str, ...]:
        found = []
        known: dict[str, list[Reading]] = {}
        for reading in self.readings:
            if reading.is_known:
                known.setdefault(reading.word, []).append(reading)
        for word, readings in known.items():
            where = ", ".join(f"number {r.place:,} of {r.vocabulary_size:,} in {r.tokenizer}" for r in readings)
            found.append(f"'{word}' is a known word or name: it is a token of its own ({where}, by frequency). The model has a meaning for it already.")
        long = [r for r in self.readings if len(r.pieces) > MANY_TOKENS]
        if long:
            where = ", ".join(f"{len(r.pieces)} tokens in {r.tokenizer}" for r in long)
            found.append(f"'{long[0].word}' is long for the text encoders ({where}): {FEW_TOKENS} or fewer are learnt more easily.")
        return (*found, *(self.collisions.sentences if self.collisions else ()))

    @property
    def sentences(self) -> tuple[str, ...]:
        lines = [f"{r.tokenizer}: '{r.word}' is {_count(len(r.pieces), 'token')}: {' | '.join(r.pieces)}" for r in self.readings]
        rare = [r for r in self.readings if r.place is not None and not r.is_known]
        lines += [f"{r.tokenizer}: '{r.word}' is one token, but a rare one (number {r.place:,} of {r.vocabulary_size:,})." for r in rare]
        if self.collisions is None:
            lines.append("No captions were connected: collisions with them were not looked for.")
        verdict = f"'{self.trigger}' can be used as a trigger word." if self.is_good else f"Think about another trigger word than '{self.trigger}':"
        if self.suggestions:
            lines.append(f"Words that no tokenizer knows, in few tokens, and that are not in the captions: {', '.join(self.suggestions)}.")
        return (verdict, *self.problems, *lines, "Known means: a token of its own. Tokenizers order their words by how often they were seen.")


def check_trigger(clip, trigger: str, captions: Iterable[str] | None, *, seed: int) -> TriggerReport:
    trigger = trigger.strip()
    if not trigger:
        raise PistachioError("The trigger word is empty. Write one on Check Trigger, for example 'ohwx'.")
    readers = tokenizers(clip)
    captions = None if captions is None else list(captions)
    readings = tuple(_reading(reader, word) for word in trigger.split() for reader in readers)
    return TriggerReport(
        trigger=trigger, readings=readings, collisions=None if captions is None else find_collisions(trigger, captions),
        suggestions=suggest(readers, captions or [], seed=seed, without={trigger.casefold()}),
    )


def _reading(reader: Tokenizer, word: str) -> Reading:
    # a comma at its end is no part of it
    bare = word.strip(",.;:!?\"'") or word
    ids = reader.word_ids(bare)
    return Reading(
        tokenizer=reader.name, word=bare, pieces=reader.pieces(bare), place=ids[0] if len(ids) == 1 else None, vocabulary_size=reader.size,
    )


def suggest(readers: tuple[Tokenizer, ...], captions: list[str], *, seed: int, without: set[str] = frozenset()) -> tuple[str, ...]:
    """Up to ten words: known to no tokenizer, few tokens in all of them, unlike common words, not in the captions, and unlike each other."""
    scored = []
    text = " ".join(captions)
    for order, word in enumerate(itertools.islice(pronounceable_words(seed), NUM_CANDIDATES)):
        counts = [len(reader.word_ids(word)) for reader in readers]
        if min(counts) < 2 or max(counts) > FEW_TOKENS or word in without or touches_captions(word, [text]):
            continue
        near = neighbours(word)
        common = sum(reader.whole_words.get(other, reader.size) < COMMON_SHARE * reader.size for reader in readers for other in near)
        scored.append((sum(counts), common, order, word))
    chosen: list[str] = []
    for *_, word in sorted(scored):
        if all(word[:2] != other[:2] for other in chosen):
            chosen.append(word)
    return tuple(chosen[:NUM_SUGGESTIONS])


# ---- what the model draws for it ------------------------------------------------


def draw(
    model, clip, vae, prompt: str, *, seed: int, num_steps: int, cfg: float, size: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> Tensor:
    """[NUM_PREVIEWS, H, W, 3] in 0..1: the model as it is, from NUM_PREVIEWS seeds, by the host's own sampler."""
    encode = text_encoder(clip)
    positive, negative = encode(prompt), encode("")
    step = int(vae.spacial_compression_decode())
    side = max(1, size // step)
    cfg = cfg or _automatic_cfg(model)
    pictures = []
    for index in range(NUM_PREVIEWS):
        check_interrupted()
        empty = torch.zeros(1, model.model.latent_format.latent_channels, side, side)
        empty = comfy.sample.fix_empty_latent_channels(model, empty)
        latent = comfy.sample.sample(
            model, comfy.sample.prepare_noise(empty, seed + index), num_steps, cfg, "euler", "simple", positive, negative, empty,
            callback=lambda *_: check_interrupted(), disable_pbar=True, seed=seed + index,
        )
        pixels = vae.decode(latent)
        pictures.append(pixels.reshape(-1, *pixels.shape[-3:])[:1].float().clamp(0, 1).cpu())  # of a video's frames the first
        progress(index + 1, NUM_PREVIEWS)
    return torch.cat(pictures)


def preview_prompt(template: str, trigger: str) -> str:
    """The trigger in place of [trigger], else after what is written."""
    text = template.strip()
    if TRIGGER_PLACEHOLDER in text:
        return text.replace(TRIGGER_PLACEHOLDER, trigger)
    return re.sub(r"\s+", " ", f"{text} {trigger}").strip()


def _automatic_cfg(model) -> float:
    """1 where guidance is an input of the network (distilled models), 4.5 for other flow models, 7 for the rest."""
    if model.model.model_config.unet_config.get("guidance_embed"):
        return 1.0
    return 4.5 if isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST) else 7.0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
