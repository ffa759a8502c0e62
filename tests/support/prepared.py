"""A host model made ready for the engine, and what a test compares before and after it was used. Needs a booted host."""

from functools import cached_property

import torch

BOTH = (0, 1)  # pictures


class Prepared:
    """A host model, two pictures and an adapter away from its start."""

    def __init__(self, tiny):
        from pistachio.bridge.conditions import prepare
        from pistachio.bridge.model import HostModel

        self.tiny = tiny
        # Convolutions are adapted too where a network has them by the dozen.
        self.targets = "all-linear+conv" if tiny.family in ("sd15", "sdxl", "sd2_v") else "all-linear"
        with torch.inference_mode():
            self.model = HostModel(tiny.model, precision="fp32")
        shape = (2, *tiny.latent_shape[1:])
        self.latents = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        self.noise = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        self.sigma = self.model.sigma_at(torch.tensor([0.7, 0.4]))
        self.conditions = [prepare(self.model.base_model, tiny.condition(text), self.latents[:1]) for text in ("a red cat", "a blue dog")]

    def network(self, *, keep="everything", keep_in_ram=False, **settings):
        """`settings`: of the adapter, where they differ from the usual ones."""
        from pistachio.training.adapted import AdaptedNetwork
        from pistachio.training.config import AdapterConfig

        config = AdapterConfig(**{"rank": 4, "alpha": 2, "targets": self.targets, **settings})
        network = AdaptedNetwork(self.model, config, seed=0, keep=keep, keep_in_ram=keep_in_ram)
        away = 0.05 * torch.randn(network.parameters.shape, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            if config.kind == "lora":
                network.parameters.copy_(away)
            else:  # DoRA's magnitudes have a size of their own
                network.parameters.add_(away)
        return network

    def errors(self, which=BOTH, model=None):
        from pistachio.training.objective import prediction_error

        which = list(which)
        return prediction_error(
            model or self.model, self.latents[which], self.noise[which], self.sigma[which], [self.conditions[i] for i in which]
        )

    def gradient(self, network, *passes, model=None):
        network.gradients.zero_()
        for which in passes or (BOTH,):
            (self.errors(which, model).sum() / 2).backward()
        return network.gradients.clone()

    def predict(self):
        return self.model.predict(self.latents, self.sigma, self.conditions)

    def stock(self, tensors):
        """(what the network predicts with this LoRA loaded by the host at strength 1, number of layers it patched)."""
        import comfy.model_management
        import comfy.sd
        from pistachio.bridge.model import HostModel

        with torch.inference_mode():
            loaded, _ = comfy.sd.load_lora_for_models(self.tiny.model, None, dict(tensors), 1.0, 0.0)
            try:
                plain = HostModel(loaded, precision="fp32")
                plain.shares_padding = False  # the host's own forward
                stock = plain.predict(self.latents, self.sigma, self.conditions)
            finally:
                comfy.model_management.load_models_gpu([self.tiny.model])  # takes the LoRA off the shared network again
        return stock, len(loaded.patches)

    @cached_property
    def plain_gradient(self):
        """Of both pictures in one pass, without checkpointing."""
        with self.model.training(), self.network() as network:
            return self.gradient(network)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def snapshot(network: torch.nn.Module):
    """Values, identities and instance attributes of everything under the network."""
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    shape = {path: (sorted(vars(module)), [id(p) for p in module._parameters.values()], vars(module).get("forward")) for path, module in network.named_modules()}
    return weights, shape


def _bytes(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()  # bits: some buffers hold NaN


def unchanged(network, before):
    weights, shape = snapshot(network)
    return shape == before[1] and all(_bytes(weights[name]) == _bytes(before[0][name]) for name in weights) and weights.keys() == before[0].keys()
