"""The 66 failure modes of the catalogue: name, severity, where they show, and what cannot."""

from __future__ import annotations

from dataclasses import dataclass

from harness.findings import Severity

DEPTHS = ("files", "weights", "lineage", "behaviour", "record", "environment")
"""Where a mode shows first: headers and settings, values, values against the base, answers, the
log of the training, the machine and its packages."""
_LETTERS = {"C": Severity.CRITICAL, "H": Severity.HIGH, "M": Severity.MEDIUM}


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One way in which a fine-tuned checkpoint fails."""

    number: str
    """`FM01` to `FM66`."""
    name: str
    """What goes wrong, in a few words."""
    severity: Severity
    """How bad the catalogue calls it."""
    depth: str
    """Where it shows first, one of `DEPTHS`."""
    reason: str = ""
    """Why no checkpoint, no log and no answer that a CPU can make shows it; empty when one can."""


_TABLE = """
01 C behaviour   EOS masked from the labels
02 C behaviour   EOS absent from the training text
03 H files       stop tokens that disagree
04 H files       chat template missing, or another
05 M files       BOS twice
06 C files       adapter keys that match nothing
07 C files       wrapper renamed in a vision model
08 C weights     adapter never trained
09 C record      labels all masked, or the wrong span
10 H record      trains on prompts
11 H files       vocabulary size mismatch
12 C weights     fp16 overflow
13 H lineage     merge into or from a 4-bit base
14 H record      optimizer state does not fit
15 H behaviour   catastrophic forgetting
16 H behaviour   repetition loops
17 C files       adapter stacking
18 H files       stacking on resume
19 C files       adapter config beside merged weights
20 C lineage     merged model equals its base
21 M files       leftover peft_config
22 C files       _orig_mod. prefix
23 C files       other wrappers in the keys
24 C files       empty adapter file
25 H files       modules_to_save saved empty
26 H lineage     LoRA scaling ignored
27 C weights     tied embeddings broken
28 H files       embedding or head targets dropped
29 H weights     added tokens never trained
30 C files       rope keys in another dialect
31 H files       tokenizer class in another dialect
32 H files       quantisation declared, weights dense
33 C files       quantised tensors nobody declares
34 C files       a missing tensor, filled at random
35 H lineage     adapter on another base or revision
36 H lineage     SFT lost on the way to DPO or GRPO
37 H record      DPO degeneration
38 H record      packing that leaks between samples
39 H record      loss scale wrong under accumulation
40 C behaviour   EOS flood, empty answers
41 C weights     NaN saved as a success
42 M environment unscaling fp16 gradients
43 C files       truncated shard
44 M files       git-LFS pointer instead of weights
45 C files       index and shards disagree
46 H files       configuration and tensors disagree
47 C weights     GPTQ zero point off by one
48 C weights     GPTQ shapes or scales damaged
49 H files       unknown pre-tokenizer in GGUF
50 H files       LoRA on nothing that matters
51 M weights     update too small to see
52 C lineage     frozen base was trained
53 C files       adapter random at each load
54 C lineage     fuse that applies nothing
55 C environment non-contiguous tensors on MPS
56 H files       padding side or attention mismatch
57 H record      GRPO collapse
58 M record      schedule changed on resume
59 C files       pickled weights that run code
60 C weights     dead rows, zero tensors
61 C lineage     weight norms explode
62 C lineage     experts merged on the wrong axis
63 C files       reward head at random
64 C files       4-bit block size of another vendor
65 H files       template markers split into pieces
66 C behaviour   voice or accuracy collapse
"""
_REASONS = {
    "FM10": "which tokens had a label leaves no trace in weights, settings or upstream's logs, and "
    "training on all of a text is right for plain text. The matrix holds the labels against what "
    "was asked: probes wrong-text-trained and setting-ignored.",
    "FM42": "the run stops with this error at its first step and leaves nothing to look at. "
    "mud-puppy keeps masters in fp32 under fp16, which the matrix checks: probe "
    "master-weights-rounded.",
    "FM38": "the tensors of a model that was packed without a block mask are those of any other "
    "training; only the training itself shows it. The matrix watches it there: probe "
    "loss-not-the-twins compares each loss with one computed on unpacked samples.",
    "FM55": "it is a fault of the kernels of Apple's MPS device while a strided tensor is "
    "updated; a file stores every tensor contiguous, and a CPU's kernels do not have it. "
    "`--env` warns of the device, and the matrix compares trained weights with a twin's.",
}


UNPLANTED = {
    "attention-kernels-disagree": "a kernel that computes wrongly",
    "padding-changes-answers": "an attention mask that the code of a model ignores",
    "neighbours-mix": "an attention mask that the code of a model ignores",
    "cache-disagrees": "a cache that the code of a model fills wrongly",
    "precision-sensitive": "a real model near the limits of its type",
}
"""Probes for which no checkpoint is broken, and what it would take: their tests hold them against
measurements that such a fault would give."""


def load_modes() -> tuple[Mode, ...]:
    """Return every mode in the order of the catalogue."""
    return tuple(_read(line) for line in _TABLE.strip().splitlines())


def _read(line: str) -> Mode:
    number, letter, depth, name = line.split(maxsplit=3)
    return Mode(
        number=f"FM{number}",
        name=name,
        severity=_LETTERS[letter],
        depth=depth,
        reason=_REASONS.get(f"FM{number}", ""),
    )
