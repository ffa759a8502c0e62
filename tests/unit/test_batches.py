"""What each optimiser step draws: fair, full, repeatable from the step alone."""

from collections import Counter

import pytest
import torch
from pistachio.training.batches import BatchPlan, TrainItem, micro_batches


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
