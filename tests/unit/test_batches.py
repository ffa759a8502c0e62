"""What each optimiser step draws: fair, full, repeatable from the step alone."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from pistachio.training.batches import BatchPlan, TrainItem, TrainSet, micro_batches


def items(*sizes, group=lambda i: "same"):
    """`sizes`: pictures per latent width."""
    made = []
    for width, count in enumerate(sizes, start=4):
        for _ in range(count):
            i = len(made)
            made.append(TrainItem(
                content_hash=f"{i:02d}", latents=torch.zeros(1, 4, 4, width), condition=i, group=group(i), prior_condition=-1 - i, prior_group="prior",
            ))
    return made


def plan(pictures, batch=2, seed=0, prior_fraction=0.0):
    return BatchPlan(pictures, batch=batch, seed=seed, prior_fraction=prior_fraction, distribution="uniform")


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", [(7,), (5, 3), (1, 1, 9), (13, 4, 2)])
def test_every_picture_is_seen_equally_often(sizes, batch):
    pictures = items(*sizes)
    drawn = plan(pictures, batch)
    rounds = 12
    seen = Counter(s.item.content_hash for step in range(1, rounds * len(pictures) + 1) for s in drawn.samples(step))
    assert set(seen) == {p.content_hash for p in pictures}
    assert max(seen.values()) - min(seen.values()) <= batch + 1
    assert sum(seen.values()) == rounds * len(pictures) * batch


def test_a_batch_has_one_shape():
    drawn = plan(items(3, 4, 2), batch=4)
    for step in range(1, 40):
        assert len({tuple(s.item.latents.shape) for s in drawn.samples(step)}) == 1


def test_a_step_depends_on_its_number_alone():
    forwards, jump = plan(items(5, 3)), plan(items(5, 3))
    for step in range(1, 30):
        kept = forwards.samples(step)
    again = jump.samples(29)
    assert [s.item.content_hash for s in kept] == [s.item.content_hash for s in again]
    assert all(torch.equal(a.noise, b.noise) and a.t == b.t for a, b in zip(kept, again))
    assert not torch.equal(kept[0].noise, kept[1].noise)
    assert not torch.equal(plan(items(5, 3), seed=1).samples(29)[0].noise, kept[0].noise)


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    plan(items(5)).samples(3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("batch, fraction", [(1, 0.5), (1, 0.3), (4, 0.5), (3, 0.5), (4, 0.1)])
def test_prior_samples_have_their_share_at_any_batch_size(batch, fraction):
    drawn = plan(items(6), batch, prior_fraction=fraction)
    samples = [s for step in range(1, 201) for s in drawn.samples(step)]
    assert abs(sum(s.is_prior for s in samples) - fraction * len(samples)) <= 1
    assert all((s.condition < 0) == s.is_prior == (s.group == "prior") for s in samples)


def test_micro_batches_keep_every_sample_and_never_mix_groups():
    pictures = items(8, group=lambda i: "short" if i % 3 else "long")
    samples = [s for step in (1, 2) for s in plan(pictures, batch=4).samples(step)]
    split = micro_batches(samples, 3)
    assert sorted(map(id, (s for b in split for s in b))) == sorted(map(id, samples))
    assert all(len(b) <= 3 and len({s.group for s in b}) == 1 for b in split)


# ---- exact shares --------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("sizes", [(7,), (1, 1, 9), (13, 4, 2), (1, 2, 3, 5, 7, 11), (1,) * 9])
def test_no_picture_is_dropped_by_rounding(sizes, batch):
    """After as many steps as there are pictures, each was seen exactly `batch` times, whatever the buckets; and so on."""
    pictures = items(*sizes)
    drawn, seen = plan(pictures, batch), Counter()
    for step in range(1, 3 * len(pictures) + 1):
        seen.update(s.item.content_hash for s in drawn.samples(step))
        if step % len(pictures) == 0:
            assert seen == {p.content_hash: batch * (step // len(pictures)) for p in pictures}


def test_repeats_are_exact_over_a_round():
    pictures = [replace(p, repeats=1 + i % 3) for i, p in enumerate(items(5, 3, 1))]
    turns = sum(p.repeats for p in pictures)
    drawn = plan(pictures, batch=2)
    seen = Counter(s.item.content_hash for step in range(1, turns + 1) for s in drawn.samples(step))
    assert seen == {p.content_hash: 2 * p.repeats for p in pictures}


def test_repeats_of_one_change_nothing():
    drawn, explicit = plan(items(5, 3)), plan(TrainSet(items=tuple(replace(p, repeats=1) for p in items(5, 3))))
    for step in range(1, 20):
        assert [s.item.content_hash for s in drawn.samples(step)] == [s.item.content_hash for s in explicit.samples(step)]


# ---- versions and captions -----------------------------------------------


def with_versions(picture, count):
    others = tuple(replace(picture, condition=f"{picture.content_hash} version {v}") for v in range(1, count))
    return replace(picture, condition=f"{picture.content_hash} version 0", others=others)


def test_versions_are_drawn_evenly_by_step_alone_and_leave_the_other_draws():
    plain, varied = plan(items(3), prior_fraction=0.5), plan([with_versions(p, 4) for p in items(3)], prior_fraction=0.5)
    jump = plan([with_versions(p, 4) for p in items(3)], prior_fraction=0.5)
    seen = Counter()
    for step in range(1, 301):
        for a, b in zip(plain.samples(step), varied.samples(step)):
            assert a.item.content_hash == b.item.content_hash and a.is_prior == b.is_prior
            assert a.t == b.t and torch.equal(a.noise, b.noise)
            if not b.is_prior:
                seen[b.condition] += 1
    assert len(seen) == 12 and min(seen.values()) > 10
    assert [s.item.condition for s in jump.samples(300)] == [s.item.condition for s in varied.samples(300)]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_dropped_captions_have_their_share_and_priors_keep_theirs(share):
    pictures = tuple(replace(p, empty_condition="empty", empty_group="nothing") for p in items(6))
    drawn = plan(TrainSet(items=pictures, caption_dropout=share), batch=2, prior_fraction=0.25)
    plain = plan(pictures, batch=2, prior_fraction=0.25)
    own = []
    for step in range(1, 401):
        for a, b in zip(plain.samples(step), drawn.samples(step)):
            assert torch.equal(a.noise, b.noise) and a.t == b.t and a.item.content_hash == b.item.content_hash
            assert (b.condition == "empty") == b.is_uncaptioned == (b.group == "nothing")
            assert not (b.is_prior and b.is_uncaptioned)
            if not b.is_prior:
                own.append(b.is_uncaptioned)
    assert abs(sum(own) / len(own) - share) < 0.05 and (0 < share < 1 or sum(own) == share * len(own))


# ---- several sizes and regularisation ------------------------------------


def test_a_set_is_its_pictures_whatever_their_sizes():
    small, large = items(3), items(0, 0, 2)
    many = TrainSet(items=(*small, *large))
    assert len(many) == 3 and [p.content_hash for p in many] == ["00", "01", "02"]
    assert all(p.shape == (1, 4, 4, 4) for p in many) and many[0] is small[0]
    drawn = plan(many, batch=1)
    seen = Counter((s.item.content_hash, s.item.shape[-1]) for step in range(1, 11) for s in drawn.samples(step))
    assert seen == {("00", 4): 2, ("01", 4): 2, ("02", 4): 2, ("00", 6): 2, ("01", 6): 2}


@pytest.mark.parametrize("share", [0.25, 0.5, 0.3])
def test_regularisation_has_its_share_of_the_steps_and_leaves_the_own_order(share):
    own = items(5, 3)
    regular = tuple(replace(p, content_hash=f"regular {p.content_hash}", loss_weight=0.5) for p in items(4))
    drawn = plan(TrainSet(items=tuple(own), regularization=regular, regularization_share=share), batch=2, prior_fraction=0.5)
    alone = plan(own, batch=2, prior_fraction=0.5)
    kinds, order = [], []
    for step in range(1, 201):
        samples = drawn.samples(step)
        is_regular = {s.item.content_hash.startswith("regular") for s in samples}
        assert len(is_regular) == 1
        kinds.append(is_regular.pop())
        if kinds[-1]:
            assert not any(s.is_prior for s in samples) and all(s.item.loss_weight == 0.5 for s in samples)
        else:
            order.append([(s.item.content_hash, s.is_prior) for s in samples])
    assert abs(sum(kinds) - share * 200) <= 1
    assert order == [[(s.item.content_hash, s.is_prior) for s in alone.samples(step)] for step in range(1, len(order) + 1)]
    seen = Counter(s.item.content_hash for step in range(1, 201) for s in drawn.samples(step) if s.item.loss_weight != 1)
    assert len(seen) == 4 and max(seen.values()) - min(seen.values()) <= 2
