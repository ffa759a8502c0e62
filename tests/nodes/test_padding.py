"""A caption's padding, computed once, gives what the host computes over every row of it."""

import math

import pytest
import torch

from support.prepared import Prepared, relative

ROWS, WHOLE, WIDTH = 64, 512, 4096


@pytest.fixture(scope="module")
def wan(tiny):
    return Prepared(tiny("wan21"))


def caption(num_words, *, seed=0, rows=WHOLE):
    made = torch.zeros(1, rows, WIDTH)
    made[:, :num_words] = torch.randn(1, num_words, WIDTH, generator=torch.Generator().manual_seed(seed))
    return made


def condition(wan, num_words, **options):
    from pistachio.bridge.conditions import prepare

    return prepare(wan.model.base_model, [[caption(num_words, **options), {}]], wan.latents[:1])


def rows_of(condition):
    return condition.arguments["c_crossattn"].cond.shape[1]


@pytest.mark.parametrize("num_words, rows", [(0, 64), (1, 64), (61, 64), (62, 128), (445, 448), (446, 512), (512, 512)])
def test_a_caption_is_cut_behind_its_last_word(wan, num_words, rows):
    made = condition(wan, num_words)
    assert rows_of(made) == rows and made.num_rows_whole == WHOLE
    assert torch.equal(made.arguments["c_crossattn"].cond, caption(num_words)[:, :rows])
    assert made.group == condition(wan, 5).group  # captions of any length share a pass


@pytest.mark.parametrize("words", [(5, 9), (0, 3), (9, 100), (20, 500)], ids=str)
def test_prediction_and_gradients_are_the_hosts_own(wan, words):
    """Captions of one and of two lengths, of no word, and one that leaves nothing to be shared."""
    model, found = wan.model, {}
    conditions = [condition(wan, count, seed=count) for count in words]
    for shares in (True, False):
        model.shares_padding = shares
        try:
            with model.training(), wan.network() as network:
                network.gradients.zero_()
                predicted = model.predict(wan.latents, wan.sigma, conditions)
                predicted.square().mean().backward()
                found[shares] = predicted.detach(), network.gradients.clone(), model.joined(conditions)
        finally:
            del model.shares_padding
    (once, gradient_once, joined), (whole, gradient_whole, plain) = found[True], found[False]
    assert plain.arguments["c_crossattn"].shape == (2, WHOLE, WIDTH) and plain.padding is None
    assert (joined.padding is None) == (max(words) == 500)
    assert joined.arguments["c_crossattn"].shape[1] == max(map(rows_of, conditions))
    assert relative(once, whole) < 1e-5 and relative(gradient_once, gradient_whole) < 1e-5


def test_a_picture_of_as_many_tokens_is_not_mistaken_for_a_caption(wan):
    """16 x 16 latents are 64 tokens, as many as a short caption's rows: then every row is computed."""
    latents, seen = torch.randn(1, 16, 1, 16, 16, generator=torch.Generator().manual_seed(5)), []
    model, short = wan.model, condition(wan, 5)

    def watched(original, q, k, v, heads, mask=None, **kwargs):
        seen.append((q.shape[1], k.shape[1], mask is not None))
        return before(original, q, k, v, heads, mask=mask, **kwargs)

    before, model.attention = model.attention, watched
    try:
        with model.training(), torch.no_grad():
            model.predict(latents, wan.sigma[:1], [short])
            assert set(seen) == {(64, 64, False), (64, WHOLE, False)}
            seen.clear()
            model.predict(wan.latents[:1], wan.sigma[:1], [short])
            assert set(seen) == {(16, 16, False), (16, ROWS, True)}
    finally:
        model.attention = before


def test_dropout_drops_other_values_in_each_row_of_the_padding(wan):
    try:
        wan.network(dropout=0.1)
        assert wan.model.joined([condition(wan, 5)]).padding is None
    finally:
        del wan.model.shares_padding


@pytest.mark.parametrize("family", ["sd15", "flux"])
def test_other_networks_captions_stay_whole(tiny, family):
    made = Prepared(tiny(family))
    assert made.conditions[0].num_rows_whole is None and made.model.joined(made.conditions).padding is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [3, 67, 451, 512])
def test_three_logits_add_up_to_the_rows_they_stand_for(host, dtype, count):
    from pistachio.bridge.padding import standing_logits

    logits = standing_logits(count, dtype)
    assert [torch.tensor(logit, dtype=dtype).item() for logit in logits] == logits
    assert abs(sum(map(math.exp, logits)) / count - 1) < 2e-5
    one = torch.tensor(math.log(count), dtype=dtype).item()
    assert dtype == torch.float32 or abs(math.exp(one) / count - 1) > 1e-4  # a single one would not do
