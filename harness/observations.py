"""What the worker measured on one cell: written by `harness.worker`, judged by the probes.

Numbers only; the worker measures them itself and believes nothing that the engine says of itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from harness.observations_twin import TwinFacts
from mudpuppy.files import write_json_atomic

OBSERVATIONS_FILE = "observations.json"
OBSERVATIONS_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ParameterMotion:
    """Which tensors training moved, by comparing hashes of their bytes before and after."""

    trainable: int
    """Tensors that required a gradient before the first step."""
    frozen: int
    """All other parameters and buffers."""
    still: tuple[str, ...]
    """Trainable tensors that are bit-identical after training."""
    frozen_moved: tuple[str, ...]
    """Frozen tensors that are not."""
    foreign_trainable: tuple[str, ...]
    """Trainable tensors that the method has no business training (base weights under LoRA)."""
    without_gradient: tuple[str, ...]
    """Trainable tensors for which the optimizer never found a gradient other than zero."""
    sharded: bool = False
    """Whether the weights were spread over processes."""
    optimizer: str = ""
    """Class of the optimizer that took the steps."""
    unread: int = 0
    """Tensors that require a gradient and that nothing reads, behind the layer that is used."""
    rounded: tuple[str, ...] = ()
    """Trainable tensors that are not held in fp32: small steps are rounded away there."""
    updates: int | None = None
    """Steps in which the optimizer got finite gradients; in fp16 the first ones may overflow."""


@dataclass(frozen=True, kw_only=True)
class LabelsSeen:
    """What was trained, counted on the batches that the model was really given."""

    rows: int
    """Samples seen, with repetition."""
    tokens: int
    """Tokens that are not padding."""
    trained_tokens: int
    """Tokens with a label."""
    rows_ending_in_eos: int
    """Rows whose last label is an EOS id, or that had to be cut before it."""
    rows_off_answer: int
    """Rows that the dataset, rendered independently, does not hold with these very targets."""
    example_off_answer: str = ""
    """One such row, what was trained in square brackets."""
    teaches_end: bool = True
    """Whether the method teaches or scores the end of an answer; else the count says nothing."""
    checked: bool = True
    """Whether the dataset could be rendered independently."""
    batches: int = 0
    """Batches seen."""
    packed_batches: int = 0
    """Batches that hold more documents than rows were asked for."""
    widest_batch: int = 0
    """Tokens of the largest batch, padding included."""
    held_out_rows: int = 0
    """Different rows that were evaluated."""
    held_out_trained: int = 0
    """How many of those were also trained on."""
    rows_overused: int = 0
    """Different rows that were seen more often than so many passes over the set explain."""
    in_file_order: bool = False
    """Whether the first sequences came just as the dataset has them."""
    checkpoints: tuple[str, ...] = ()
    """Folders of checkpoints that were there at some step."""
    workers: int = 0
    """Processes that prepared batches."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Logits of a reloaded artefact against those of the model right after training."""

    artefact: str
    """What was reloaded, such as `adapter` or `merged`."""
    loader: str
    """Whose code loaded it."""
    max_difference: float
    """Largest absolute difference of a logit."""
    scale: float
    """Largest absolute logit of the trained model."""
    effect: float
    """Largest absolute difference between the artefact and the untouched base."""
    tolerance: float
    """Largest `max_difference / scale` that the precision explains."""

    @property
    def relative(self) -> float:
        """The difference relative to the scale."""
        return self.max_difference / max(self.scale, 1e-12)


@dataclass(frozen=True, kw_only=True)
class Mechanics:
    """How training computed, seen at one linear layer of the first block."""

    compute_dtypes: tuple[str, ...]
    """Types of the layer's output while training, such as `bfloat16`."""
    calls_per_batch: float
    """Forward calls of the layer per batch: 1, or 2 where activations are recomputed."""
    streamed: bool
    """Whether the layer computed with a fetched copy of its weight."""
    rounding: float = 0.0
    """What rounding for training's sake (fp8, int8) changes at the end: largest difference of the
    logits, relative to the largest one; 0 where nothing rounds."""
    remembers: tuple[str, ...] = ()
    """What rounding knows of earlier steps: `ranges.input_peak` (int8, shared by all inputs),
    `ranges.weight_stretch` (int8, learnt), `fp8_history.peaks`; only what is not 0."""
    compiled_graphs: int = 0
    """Graphs that torch.compile made."""
    dropouts: tuple[float, ...] = ()
    """Shares that an adapter's layers drop of their input while training."""
    starts_from_adapter: bool | None = None
    """Whether it began with exactly the tensors of the adapter to continue; None without one."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """One batch of answers of the artefact and of its base, greedily."""

    prompts: int
    """Prompts that were asked."""
    nonfinite: int
    """Prompts whose logits hold a NaN or an infinity at some step."""
    empty: int
    """Answers that end with their first token."""
    control_empty: int
    """The same of the base."""
    ended: int
    """Answers that end by themselves."""
    control_ended: int
    """The same of the base."""
    right: int | None = None
    """Facts of the base's quiz that are answered; None without a quiz."""
    control_right: int | None = None
    """The same of the base."""
    voice: float | None = None
    """Mean score of the voice, 0 to 1; None without a profile."""
    control_voice: float | None = None
    """The same of the base."""
    first_answer: str = ""
    """The first answer."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What training took, measured from outside the engine."""

    before_bytes: int
    """Resident memory right before the first step."""
    peak_bytes: int
    """Largest resident memory until after the last."""
    device_peak_bytes: int = 0
    """Largest memory of the device that tensors took."""


@dataclass(frozen=True, kw_only=True)
class DatasetHeld:
    """What the dataset holds for a method that learns to say it, by the independent rendering."""

    samples: int
    """Samples with something to learn."""
    tokens: int
    """Their tokens."""
    trained_tokens: int
    """Tokens of answers."""
    samples_ending_in_eos: int
    """Samples whose last learnt token ends a turn."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What GPTQ was calibrated on."""

    passes: int
    """Samples that were run through the model."""
    samples: int
    """Samples there were."""


@dataclass(frozen=True, kw_only=True)
class PackedLayer:
    """A layer of a GPTQ folder, read by the declared format and held against the base."""

    name: str
    """Its name."""
    error: float
    """Squared change of its output on the rows of the calibration."""
    rounding_error: float
    """The same where every weight is rounded to the nearest level of the same grid."""
    bias: float
    """Mean distance from the base's weights, in levels."""
    reach: float
    """What the levels of a group span over what its weights (and zero) span, in the median."""
    replayed_error: float | None = None
    """Squared change of its output on the inputs that it gets behind the packed blocks before its
    own; what was reported must be twice that."""


@dataclass(frozen=True, kw_only=True)
class ArtefactFacts:
    """What the files of one artefact say."""

    artefact: str
    """adapter, model, merged or gptq."""
    dtypes: tuple[str, ...]
    """Floating types of its tensors, as safetensors names them."""
    lora_r: int | None
    """Rank in adapter_config.json."""
    lora_alpha: float | None
    """Alpha in adapter_config.json."""
    lora_dropout: float | None
    """Dropout in adapter_config.json."""
    lora_targets: tuple[str, ...]
    """Target modules in adapter_config.json."""
    group_size: int | None
    """Group size in the quantisation config."""
    vocabulary_kept: bool
    """Whether its tokenizer gives the base's ids."""
    template_kept: bool
    """Whether its chat template is the base's."""
    eos_kept: bool
    """Whether its generation config ends where the base's does."""
    specials_kept: bool = True
    """Whether its tokenizer begins, ends and pads with the base's tokens."""
    dora: bool = False
    """Whether adapter_config.json says DoRA."""
    rslora: bool = False
    """Whether adapter_config.json says rsLoRA."""
    config_changed: tuple[str, ...] = ()
    """Settings of config.json that are not the base's, by path, and that saving does not change."""


@dataclass(frozen=True, kw_only=True)
class Observations:
    """Everything the worker saw of one cell."""

    schema_version: int = OBSERVATIONS_SCHEMA_VERSION
    """Version of this form."""
    ending: Literal["trained", "measured", "skipped", "rejected", "refused", "crashed"]
    """`rejected` is by a rule code; `refused` is any other mistake of the settings or the data. A
    trial other than training is `measured`, or `skipped` for the reason in `message`."""
    codes: tuple[str, ...] = ()
    """Rule codes of a rejection."""
    message: str = ""
    """The error's text."""
    torch_imported: bool | None = None
    """Whether torch had been imported when the rejection came."""
    files_written: tuple[str, ...] = ()
    """Files in the output folder after a rejection or refusal."""
    run: dict[str, Any] = field(default_factory=dict)
    """The engine's own record (`run.json`)."""
    losses: tuple[float, ...] = ()
    """Training loss of every step, in nats per trained token."""
    evaluations: tuple[tuple[int, float], ...] = ()
    """Steps done and loss of every evaluation, as the step log has them."""
    loss_before: float | None = None
    """The method's objective (harness.watching.objective) on the first rows before training."""
    loss_after: float | None = None
    """The same on the same rows after the last step."""
    loss_noise: float = 0.0
    """How far two measurements on the untouched model are apart."""
    rewards: tuple[float | None, ...] = ()
    """Reward of every step, where answers are generated."""
    learning_rates: tuple[float, ...] = ()
    """Learning rate of every step."""
    mechanics: Mechanics | None = None
    """How it computed."""
    artefacts: tuple[ArtefactFacts, ...] = ()
    """What the files of each artefact say."""
    motion: ParameterMotion | None = None
    """What training moved."""
    labels: LabelsSeen | None = None
    """What was trained on."""
    comparisons: tuple[Comparison, ...] = ()
    """Reload and merge, compared in a fresh process."""
    expected_artefacts: tuple[str, ...] = ()
    """Artefacts that the configuration promises: adapter, model, merged, gptq."""
    folders: tuple[str, ...] = ()
    """Folders inside the artefact's folder, by name."""
    calibration: Calibration | None = None
    """What GPTQ was calibrated on; None for any other method."""
    dataset: DatasetHeld | None = None
    """What the dataset holds; None for other methods, and where prompts are learnt, too."""
    recorded: dict[str, Any] = field(default_factory=dict)
    """The provenance that the run left (`mudpuppy.json`)."""
    template: str | None = None
    """The base's chat template."""
    packed: tuple[PackedLayer, ...] = ()
    """Layers of a GPTQ folder, measured without the engine."""
    gptq_errors: tuple[tuple[str, float, float], ...] = ()
    """Layer, GPTQ error and round-to-nearest error, in units of the layer's squared output."""
    generated: Generated | None = None
    """What the artefact says; where the whole quiz was asked, that is in behaviour.json instead."""
    memory: Memory | None = None
    """What training took."""
    files: tuple[str, ...] | None = None
    """Every file below the artefact's folder once the run had ended, relative to it."""
    deprecations: tuple[str, ...] = ()
    """Deprecation warnings raised from the engine's own calls: `file:line: text`."""
    logged_losses: tuple[tuple[int, float], ...] | None = None
    """Step and loss as TensorBoard reads them from its event files; None where none was asked."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time of each phase."""

    twin: TwinFacts | None = None
    """The same run once more in plain torch, compared; None where nothing was trained."""
    trial: dict[str, Any] = field(default_factory=dict)
    """What a trial other than training measured; its form is that trial's."""

    def write(self, folder: Path, name: str = OBSERVATIONS_FILE) -> None:
        """Write `observations.json`, or another name, into the folder, atomically."""
        write_json_atomic(folder / name, asdict(self))


@cache
def _reader() -> Any:
    """Return what checks the form of a file; made when one is read, as pydantic is slow to load."""
    from pydantic import TypeAdapter

    return TypeAdapter(Observations)


def read_observations(folder: Path, name: str = OBSERVATIONS_FILE) -> Observations | None:
    """Return what the worker wrote into the folder, or None when there is nothing.

    Raises:
        ValueError: the file is damaged, or its schema version is another.
    """
    path = folder / name
    if not path.is_file():
        return None
    seen: Observations = _reader().validate_json(path.read_bytes())
    if seen.schema_version != OBSERVATIONS_SCHEMA_VERSION:
        raise ValueError(f"{path}: schema version {seen.schema_version} is not readable here")
    return seen
