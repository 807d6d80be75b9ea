"""Whether another package's GPTQ can be used here: asked before torch is imported."""

from __future__ import annotations

from importlib import metadata

from mudpuppy.config import TrainingConfig
from mudpuppy.errors import ConfigError

PACKAGE = "gptqmodel"
OLDEST = "4.0"
"""First version with group-aware act-order (`act_group_aware`), which ours means by act-order."""


def require_backend(config: TrainingConfig) -> None:
    """Refuse `--gptq-backend gptqmodel` where the package is absent or does not fit.

    That there is a CUDA device is seen later, when torch is there (`methods.gptq_foreign`).

    Raises:
        ConfigError: it is not installed, is too old, or needs another torch; or a setting asks for
            what it does not do.
    """
    if config.method != "gptq" or config.gptq_backend != PACKAGE:
        return
    problems = [*_package_problems()]
    if config.resume:
        problems.append(f"--resume: {PACKAGE} keeps nothing that a run could go on from")
    if problems:
        raise ConfigError(
            [f"--gptq-backend: {problem}" for problem in problems],
            hint="leave out --gptq-backend: the engine's own GPTQ runs on every device; or "
            f"pip install -U {PACKAGE} into an environment with the torch that it asks for",
        )


def _package_problems() -> list[str]:
    from packaging.requirements import Requirement
    from packaging.version import Version

    try:
        found = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return [f"{PACKAGE} is not installed"]
    problems = []
    if Version(found) < Version(OLDEST):
        problems.append(f"{PACKAGE} {found} is older than {OLDEST}")
    for line in metadata.requires(PACKAGE) or ():
        needed = Requirement(line)
        if needed.name != "torch" or (needed.marker and not needed.marker.evaluate({"extra": ""})):
            continue
        torch = metadata.version("torch").partition("+")[0]
        if not needed.specifier.contains(torch, prereleases=True):
            problems.append(f"{PACKAGE} {found} asks for torch{needed.specifier}, this is {torch}")
    return problems
