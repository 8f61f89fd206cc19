"""The base of both trainers: runs that survive interruptions, several processes that act as one, logs, command lines.

Nothing here depends on what is trained. Importing this package needs only PyTorch; config files and TensorBoard need
the extra ``train``, as does :mod:`adaptive_margin.training.command_line`, which must be imported separately.
"""

from typing import TYPE_CHECKING

from .._lazy import on_demand

if TYPE_CHECKING:
    from ..atomic import DiskSpaceError, write_atomically
    from .checkpoints import CheckpointError, Checkpoints
    from .config_files import ConfigError, from_yaml, read_options, to_yaml
    from .loop import Job, NonFiniteError, Stopped, Summary, best_state, ignore_interrupts, train
    from .optimisation import Precision, autocast, backward_and_step, gradient_scaler
    from .progress import Progress
    from .randomness import random_states, restore_random_states, seed_everything
    from .run_folder import Curve, RunFolder, RunFolderError, environment, read_scalars
    from .world import GlobalBatchNorm, MainProcessError, World, synchronise_batch_norm

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "ConfigError",
    "Curve",
    "DiskSpaceError",
    "GlobalBatchNorm",
    "Job",
    "MainProcessError",
    "NonFiniteError",
    "Precision",
    "Progress",
    "RunFolder",
    "RunFolderError",
    "Stopped",
    "Summary",
    "World",
    "autocast",
    "backward_and_step",
    "best_state",
    "environment",
    "from_yaml",
    "gradient_scaler",
    "ignore_interrupts",
    "random_states",
    "read_options",
    "read_scalars",
    "restore_random_states",
    "seed_everything",
    "synchronise_batch_norm",
    "to_yaml",
    "train",
    "write_atomically",
]
_MODULES = ("checkpoints", "config_files", "loop", "optimisation", "progress", "randomness", "run_folder", "world")
__getattr__ = on_demand(__name__, __all__, _MODULES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
