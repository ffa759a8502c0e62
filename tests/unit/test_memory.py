"""Counting live tensors, adding a plan up, choosing on the ladder; on a small flow model and on made-up sizes, without a host."""

import pytest
import torch
from support.flow import Flow, train_items

from pistachio.training.config import AdapterConfig, ObjectiveConfig, OptimizerConfig, TrainConfig
from pistachio.training.config.memory import MemoryConfig
from pistachio.training.errors import PistachioError
from pistachio.training.memory.cards import CARDS, PRESETS, preset
from pistachio.training.memory.counting import LiveStorage
from pistachio.training.memory.estimate import BaseSize, Facts, OptimizerSize, predict
from pistachio.training.memory.plan import MemoryPlan
from pistachio.training.memory.search import DoesNotFit, allowed, choose, ladder, leaner
from pistachio.training.memory.table import alternatives_sentence, sentence, table
from pistachio.training.memory.trace import StepTrace

MB = 10**6
CPU = torch.device("cpu")


def test_views_and_old_tensors_are_not_counted_and_ends_are_seen():
    before = torch.zeros(1000)
    with LiveStorage(CPU) as count:
        view = before[:10].view(2, 5)
        made = before + 1
        shared = made[5:]
        assert count.live_bytes == 4000
        del made
        assert count.live_bytes == 4000  # a view of it lives
        del shared
        assert count.live_bytes == 0 and count.peak_bytes == 4000
        view.add_(1)
        assert count.live_bytes == 0


def test_the_same_shapes_on_meta_count_as_on_the_cpu():
    def work(device):
        layer = torch.nn.Linear(64, 32, device=device)
        with LiveStorage(torch.device(device)) as count:
            x = torch.ones(16, 64, device=device, requires_grad=True)
            loss = torch.nn.functional.silu(layer(x)).square().sum()
            saved = count.live_bytes
            loss.backward()
        return saved, count.peak_bytes

    assert work("meta") == work("meta") == work("cpu")


def test_what_an_operation_holds_inside_itself_can_be_told():
    scratch = lambda function, args, result: 5000 if function is torch.ops.aten.mm.default else 0
    with LiveStorage(CPU, scratch=scratch) as count:
        torch.ones(10, 10) @ torch.ones(10, 10)
    assert count.peak_bytes == 3 * 400 + 5000


SAVED = {"everything": 1000, "products": 600, "attention": 400, "blocks": 100}


def facts(**changes):
    """A network of ten blocks of 100 MB; a picture keeps SAVED MB."""
    return Facts(**{
        "base": {"as-loaded": BaseSize(total_bytes=1100 * MB, block_bytes=(100 * MB,) * 10)},
        "optimizer": OptimizerSize(state_bytes=20 * MB, work_bytes=0),
        "trace": lambda pictures, keep: StepTrace(saved_bytes=SAVED[keep] * MB * pictures, peak_bytes=(SAVED[keep] + 50) * MB * pictures, adapter_bytes=10 * MB),
        "forward_bytes": lambda pictures: 5 * MB * pictures, "num_blocks": 10, **changes,
    })


def chosen(limit_mb, memory=MemoryConfig(), config=TrainConfig(), sizes=None, on_cpu=False):
    choice = allowed(config, memory, has_blocks=True, on_cpu=on_cpu, limit_bytes=limit_mb and limit_mb * MB)
    return choose(config, memory, choice, sizes or facts())


@pytest.mark.parametrize(("limit_mb", "keep", "streamed"), [
    (None, "everything", 0), (2210, "everything", 0), (2199, "products", 0), (1700, "attention", 0), (1350, "blocks", 0), (1100, "blocks", 4), (700, "blocks", 8),
])
def test_the_quickest_that_fits_is_taken(limit_mb, keep, streamed):
    plan = chosen(limit_mb).plan
    assert (plan.keep, plan.blocks_streamed) == (keep, streamed)
    assert limit_mb is None or plan.peak_bytes <= limit_mb * MB


def test_another_format_comes_last_and_streaming_is_not_for_a_cpu():
    packed = BaseSize(total_bytes=350 * MB, block_bytes=(25 * MB,) * 10, largest_layer_bytes=10 * MB)
    with_nf4 = facts(base={**facts().base, "nf4": packed})
    assert chosen(700, sizes=with_nf4).plan.base_format == "as-loaded"
    assert chosen(450, sizes=with_nf4).plan.base_format == "nf4"
    with pytest.raises(DoesNotFit):
        chosen(700, on_cpu=True)


def test_batch_and_accumulation_are_split_anew_only_when_asked():
    config = TrainConfig(batch_size=4, accumulation=2)
    with pytest.raises(DoesNotFit, match="batch 4 x 2"):
        chosen(450, config=config)
    plan = chosen(1700, MemoryConfig(batch="effective"), config).plan
    assert plan.batch_size * plan.accumulation == 8 and plan.keep == "attention" and plan.batch_size == 1


def test_what_is_set_is_kept_and_what_contradicts_is_refused():
    assert chosen(None, MemoryConfig(keep="attention")).plan.keep == "attention"
    assert chosen(None, config=TrainConfig(block_checkpointing="on")).plan.keep == "blocks"
    with pytest.raises(PistachioError, match="keep is 'attention'"):
        chosen(None, MemoryConfig(keep="attention"), TrainConfig(block_checkpointing="on"))


def test_evaluation_and_samples_are_in_the_plan():
    heavy = facts(forward_bytes=lambda pictures: 300 * MB * pictures)
    plan = chosen(1700, sizes=heavy).plan  # four pictures at once would need 2360
    assert plan.evaluation_batch == 1 and plan.phases["evaluation"] <= 1700 * MB
    sampled = predict(MemoryPlan(batch_size=1, accumulation=1), facts(sample_bytes=lambda: 5000 * MB))
    assert sampled.peak_bytes == sampled.phases["samples"] > sampled.phases["step"]


def test_each_next_plan_is_leaner():
    config, memory = TrainConfig(), MemoryConfig()
    choice = allowed(config, memory, has_blocks=True, on_cpu=False, limit_bytes=None)
    plan, seen = predict(next(ladder(config, memory, choice, facts())), facts()), []
    while plan is not None:
        seen.append(plan.peak_bytes)
        plan = leaner(plan, config, memory, choice, facts())
    assert len(seen) > 5 and seen == sorted(seen, reverse=True)


def test_words_say_what_fits():
    choice = chosen(1700)
    assert "Predicted peak 1.6 GB of 1.7 GB" in sentence(choice) and "blocks keep attention's outputs" in sentence(choice)
    assert "blocks keep everything, batch 1 2.2 GB (does not fit)" in alternatives_sentence(choice)
    assert table(choice).count("\n") == 4 and "s a step" not in table(choice)  # no time that nobody measured


def test_presets_begin_below_their_card():
    assert list(PRESETS[1:]) == list(CARDS) == ["12 GB", "16 GB", "24 GB", "48 GB", "80 GB", "141 GB"]
    assert all(0.9 * card.size_gb < preset(name).limit_gb < card.size_gb for name, card in CARDS.items())
    assert preset(PRESETS[0]) == MemoryConfig()


def test_an_optimiser_is_counted():
    from pistachio.training.adapted import AdaptedNetwork
    from pistachio.training.memory.optimizer_size import optimizer_size

    network = AdaptedNetwork(Flow(), AdapterConfig(rank=4, alpha=4), seed=0)
    size_bytes = network.parameters.nbytes
    assert optimizer_size(network, OptimizerConfig()).state_bytes == pytest.approx(2 * size_bytes, rel=0.02)
    assert optimizer_size(network, OptimizerConfig(name="lion")).state_bytes == pytest.approx(size_bytes, rel=0.02)


def test_a_micro_batch_of_the_plan_gives_the_same_step():
    from pistachio.training.trainer import Trainer

    config = TrainConfig(batch_size=4, adapter=AdapterConfig(rank=2, alpha=2, targets="all-linear+conv"), objective=ObjectiveConfig(prior_fraction=0.0), num_steps=2)

    def after(micro_batch):
        trainer = Trainer(Flow(), train_items(), config, micro_batch=micro_batch)
        with trainer.network:
            trainer.advance()
        return trainer.network.parameters.detach().clone()

    torch.testing.assert_close(after(0), after(2), rtol=1e-5, atol=1e-7)


def test_gradients_that_are_added_up_take_no_room_beside_the_first():
    """Three slices of one tensor: autograd holds the sum so far and the next slice's gradient, each as large as the tensor."""
    x = torch.randn(100_000, requires_grad=True)
    with LiveStorage(torch.device("cpu")) as count:
        (x[:1].sum() + x[1:2].sum() + x[2:3].sum()).backward()
    whole = x.numel() * x.element_size()
    assert 2 * whole <= count.peak_bytes < 2.1 * whole
