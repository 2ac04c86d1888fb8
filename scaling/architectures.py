"""Which functions train and evaluate a model: those that ship with the project, or registered ones."""

from scaling import accounting, fast, model
from scaling.config import ModelConfig
from scaling.optimizer import GROUPS
from scaling.registry import MODELS, Architecture, architecture


def _counts(config: ModelConfig) -> tuple[int, int, int]:
    counted = accounting.count_parameters(config)
    return counted.embedding, counted.non_embedding, counted.unembedding


_TRANSFORMER = Architecture(
    initial_parameters=model.initial_parameters,
    mean_loss=fast.mean_loss,
    window_losses=fast.window_losses,
    count_parameters=_counts,
    forward_flops_per_token=accounting.forward_flops_per_token,
    group_of=lambda name: GROUPS.get(name, "matrix"),
)


def architecture_of(config: ModelConfig) -> Architecture:
    """Functions of a model by its kind."""
    return _TRANSFORMER if config.kind in MODELS else architecture(config.kind)
