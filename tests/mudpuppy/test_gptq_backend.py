"""Another package's GPTQ is refused in words where it is absent or does not fit."""

from importlib import metadata

import pytest

from mudpuppy.config_check import load_config
from mudpuppy.errors import ConfigError
from mudpuppy.gptq_backend import require_backend


def configure(**settings):
    words = {"model": "tiny", "dataset": "d.jsonl", "output": "out", "method": "gptq"}
    return load_config({**words, **settings})


@pytest.fixture
def installed(monkeypatch):
    """Pretend that versions are installed; a package without one is absent."""

    def pretend(asked: str, **versions):
        def version(name):
            if versions.get(name) is None:
                raise metadata.PackageNotFoundError(name)
            return versions[name]

        monkeypatch.setattr(metadata, "version", version)
        monkeypatch.setattr(metadata, "requires", lambda _: [asked, "numpy>=1"])

    return pretend


def test_it_is_refused_where_it_is_absent_old_or_asks_for_another_torch(installed):
    config = configure(gptq_backend="gptqmodel")
    installed("torch>=2.14.1", torch="2.13.0+cpu")
    with pytest.raises(ConfigError, match="gptqmodel is not installed"):
        require_backend(config)
    installed("torch>=2.14.1", torch="2.13.0+cpu", gptqmodel="7.7.0")
    with pytest.raises(ConfigError, match=r"asks for torch>=2\.14\.1, this is 2\.13\.0"):
        require_backend(config)
    installed("torch>=2.0", torch="2.13.0+cpu", gptqmodel="1.4.3")
    with pytest.raises(ConfigError, match=r"gptqmodel 1\.4\.3 is older than"):
        require_backend(config)
    installed("torch>=2.0; extra == 'never'", torch="2.13.0+cpu", gptqmodel="7.7.0")
    require_backend(config)
    with pytest.raises(ConfigError, match="--resume"):
        require_backend(configure(gptq_backend="gptqmodel", resume=True))


def test_nobody_asks_where_it_is_not_chosen(installed):
    installed("torch>=99", torch="2.13.0")
    require_backend(configure())
    require_backend(configure(method="lora", gptq_backend="gptqmodel"))
