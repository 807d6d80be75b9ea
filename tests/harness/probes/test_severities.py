"""Whether every probe is as severe as the catalogue calls its worst mode, or says why not."""

from harness.findings import Severity
from harness.registry import load_probes
from harness.selftest.modes import load_modes

RANKS = (Severity.NOTE, Severity.MEDIUM, Severity.HIGH, Severity.CRITICAL)
WATCHED = "MPD7"
"""Probes of a watched run: the engine broke what it promises, whatever became of the checkpoint."""
UNUSABLE = "nothing can be loaded or asked at all; the mode's letter is of a model that answers"
SERVERS = "right where it was made; only some servers get it wrong, and nothing shows which is used"
WARNING = "a sign in the log, before the damage; the weights are asked for the damage themselves"
ADVICE = "advice on a choice that may be deliberate"
MEANT = "often meant so; the fault is an effect that other probes measure"
LIVE = "a state of an object in memory that one call mends; nothing is saved yet"
ENVIRONMENT = "what this machine or a version can do, not what happened to the checkpoint"
PARTIAL = "a part is affected and the rest works, or a threshold stands where nothing is certain"
LATER = "the checkpoint itself is usable; going on from it is what suffers"

OTHERWISE = {
    "shards-stale": "a loader that goes by the index reads the right weights",
    "files-linked-from-elsewhere": MEANT,
    "config-file-unreadable": UNUSABLE,
    "config-missing": UNUSABLE,
    "shapes-disagree": UNUSABLE,
    "tokenizer-unusable": UNUSABLE,
    "checkpoints-grow": "it shows FM18, which is high; FM17 is what may come of it",
    "checkpoint-unchanged": "the run has other checkpoints, and the last may have learnt",
    "checkpoint-not-resumable": LATER,
    "adapter-scale-unportable": SERVERS,
    "adapter-needs-merging": SERVERS,
    "tokenizer-class-changed": SERVERS,
    "adapter-start-not-repeatable": "nearly the same start each time; only exactness is lost",
    "adapter-on-adapter": "readers that follow the chain of bases get it right",
    "base-named-loosely": "right as long as the name means the same model; no harm is seen yet",
    "rows-dead": PARTIAL,
    "layer-off-its-siblings": PARTIAL,
    "frozen-weights-beside-low-rank": "may have been trained on purpose, as modules_to_save",
    "adapters-irregular": LIVE,
    "tensors-not-contiguous": "harms on one device alone, and no other is known to be wrong",
    "base-left-trainable": LIVE,
    "dropout-left-on": "right while training, and only a live model is seen",
    "language-drift": "another language may be what was trained",
    "precision-sensitive": "answers still agree in what they say; overflow has a probe of its own",
    "merge-answers-differ": "base and adapter are as trained; what went wrong has a critical probe",
    "topic-collapse": PARTIAL,
    "forbidden-claims": PARTIAL,
    "server-answers-fail": "a server may fail for reasons that are not the model's",
    "pad-is-eos": MEANT,
    "turn-never-ended": "the training may have had another template",
    "rope-disagrees": "nothing breaks at once; quality falls with the length of the text",
    "special-tokens-contradict": "transformers reads one of them; only others are misled",
    "dtype-disagrees": "a risk of overflow, which the weights and the answers are asked for",
    "unknown-token-missing": "shows only where a text holds what the vocabulary lacks",
    "padding-side-changed": MEANT,
    "loss-never-moves": WARNING,
    "loss-above-chance": WARNING,
    "loss-diverged": WARNING,
    "gradient-exploded": WARNING,
    "loss-spikes": WARNING,
    "evaluation-rises": WARNING,
    "answers-hit-the-limit": WARNING,
    "run-ended-early": "stopping early is a common choice, and the checkpoint is whole",
    "rank-beyond-data": ADVICE,
    "epochs-beyond-data": ADVICE,
    "rate-unusual": ADVICE,
    "machine-trapped": ENVIRONMENT,
    "package-defective": ENVIRONMENT,
    "wheels-mixed": ENVIRONMENT,
    "made-with-defect": ENVIRONMENT,
}
"""Probes that are more or less severe than the catalogue, and why."""


def test_every_probe_is_as_severe_as_its_worst_mode_or_says_why_not():
    letters = {mode.number: mode.severity for mode in load_modes()}
    unlike = {}
    for probe in load_probes():
        known = [letters[mode] for mode in probe.modes if mode in letters]
        worst = max(known, key=RANKS.index, default=None)
        if not probe.code.startswith(WATCHED) and worst is not None and worst != probe.severity:
            unlike[probe.name] = f"{probe.severity}, the catalogue says {worst}"
    unargued = {name: how for name, how in unlike.items() if name not in OTHERWISE}
    assert not unargued
    assert not set(OTHERWISE) - set(unlike), "no longer exceptions"


def test_every_probe_names_modes_of_the_catalogue_or_watches_a_run():
    known = {mode.number for mode in load_modes()}
    for probe in load_probes():
        assert set(probe.modes) <= known, probe.name
        assert probe.modes or probe.code.startswith(WATCHED), probe.name
