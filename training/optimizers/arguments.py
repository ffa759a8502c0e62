"""`optimizer_args`: "key=value" text, checked against what the optimiser's constructor takes."""

from __future__ import annotations

import inspect

from ..config.check import check, meant
from ..config.optimizer import ADAM_LIKE, OptimizerConfig
from ..errors import PistachioError

WORDS = {"true": True, "false": False, "none": None}
# Set elsewhere; given twice, one of them would be ignored.
ON_THE_NODE = {"lr": "learning_rate", "weight_decay": "weight_decay"}
ON_THE_NODE_FOR_ADAM = {"betas": "beta1 and beta2", "eps": "epsilon"}


def parse(text: str) -> dict:
    """Values are numbers, true, false, none, names, or several with commas between them: "betas=0.9,0.99 amsgrad=true"."""
    values = {}
    for part in text.split():
        key, equals, value = part.partition("=")
        check(bool(key and equals and value), f"'{part}' in optimizer_args is not key=value. Write for example d_coef=0.8, without spaces inside.")
        check(key not in values, f"'{key}' stands twice in optimizer_args. Remove one.")
        items = [_value(item) for item in value.strip("()[]").split(",") if item]
        values[key] = tuple(items) if "," in value else items[0] if items else ""
    return values


def _value(text: str):
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def constructor_arguments(optimizer_class: type, config: OptimizerConfig, **defaults) -> dict:
    """What to give beside the parameters: `defaults`, the node's settings that the class takes, and optimizer_args."""
    parameters = inspect.signature(optimizer_class.__init__).parameters
    taken = [name for name in list(parameters)[2:] if parameters[name].kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)]
    on_the_node = ON_THE_NODE | (ON_THE_NODE_FOR_ADAM if config.name in ADAM_LIKE else {})
    free = sorted(set(taken) - set(on_the_node) - set(defaults))
    given = parse(config.optimizer_args)
    for key in given:
        check(key not in on_the_node, f"'{key}' stands in optimizer_args, and is {on_the_node.get(key)} in Optimizer Settings. Set it there.")
        check(
            key in free,
            f"{optimizer_class.__name__} has no setting '{key}' (in optimizer_args).{meant(key, free)} It has: {', '.join(free) or 'none'}.",
        )
    arguments = {"lr": config.learning_rate} | defaults | given
    if "weight_decay" in taken:
        arguments["weight_decay"] = config.weight_decay
    elif config.weight_decay:
        raise PistachioError(
            f"{optimizer_class.__name__} has no weight decay, and {config.weight_decay} is set. Set weight_decay to 0 in Optimizer Settings."
        )
    if config.name in ADAM_LIKE:
        arguments |= {"betas": (config.beta1, config.beta2), "eps": config.epsilon}
    return arguments
