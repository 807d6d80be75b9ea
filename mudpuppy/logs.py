"""`--report-to`: is the package there, where do its files go, and does it stay on this machine."""

from __future__ import annotations

import importlib.util
import os

from mudpuppy.config import TrainingConfig
from mudpuppy.errors import ConfigError

LOG_FOLDERS = {"tensorboard": "runs", "wandb": "wandb"}
"""Folder inside the output that each writes to."""


def require_packages(config: TrainingConfig) -> None:
    """Refuse to report to what is not installed, before torch is imported.

    Raises:
        ConfigError: a package is missing.
    """
    missing = [name for name in config.report_to if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            [f"--report-to {name}: the package {name} is not installed" for name in missing],
            hint=f"pip install {' '.join(missing)}",
        )


def settle_environment(config: TrainingConfig) -> list[str]:
    """Keep W&B on this machine and in the output folder, unless the person's variables say more.

    Returns:
        What was set, a sentence each; what the environment says already is left as it is.
    """
    if "wandb" not in config.report_to:
        return []
    said = []
    wanted = {"WANDB_MODE": "offline", "WANDB_DIR": str(config.output), "WANDB_SILENT": "true"}
    for name, value in wanted.items():
        if name not in os.environ:
            os.environ[name] = value
            said.append(f"{name}={value}")
    if "WANDB_MODE=offline" not in said:
        return []
    return [
        "W&B writes on this machine only, since WANDB_MODE is not set; send it with "
        f"`wandb sync {config.output}/wandb/offline-run-*`"
    ]
