"""The ways of cutting text that llama.cpp knows, as tokenizer.json writes them.

llama.cpp has one name for a way of cutting together with whether merges are left out for words that
are tokens themselves (src/llama-vocab.cpp). The regular expressions are those of the published
tokenizers; where llama.cpp runs another one, `differs` says what comes out otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from mudpuppy.errors import ModelError, near_names
from mudpuppy.export.gguf.vocabulary_codes import UNKNOWN_NAME

BYTES = "bytes"
"""The stage that writes every byte as a character."""
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What the stage ByteLevel cuts by, where it is told to."""
DIGITS, DIGIT_RUNS = r"\p{N}", r"\p{N}+"
"""What the stage Digits cuts out, one by one or together."""
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_OTHER = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
LLAMA3 = rf"{_SHORT}|{_WORD}|\p{{N}}{{1,3}}|{_OTHER}|{_BLANKS}"
QWEN2 = rf"{_SHORT}|{_WORD}|\p{{N}}|{_OTHER}|{_BLANKS}"
QWEN35 = (
    rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BLANKS}"
)
_FIRST, _LAST = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SLASHED = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
TEKKEN = rf"{_LEAD}{_FIRST}*{_LAST}+|{_LEAD}{_FIRST}+{_LAST}*|\p{{N}}|{_SLASHED}"
GPT4O = (
    rf"{_LEAD}{_FIRST}*{_LAST}+{_SHORT}?|{_LEAD}{_FIRST}+{_LAST}*{_SHORT}?"
    rf"|\p{{N}}{{1,3}}|{_SLASHED}"
)
DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_BLANKS}"
)
SEED_CODER = rf"{_SHORT}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_BLANKS}"
BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
MINICPM5 = rf"{_SHORT}|{_WORD}|\p{{N}}+|{_OTHER}|{_BLANKS}"
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
_RUNS = "".join(rf"\s{{{2**n}}}(?!\S)|" for n in range(9, 1, -1))
JAIS2 = rf"{_SHORT}|{_WORD}|\p{{N}}{{1,3}}|{_OTHER}|\s*[\r\n]+|{_RUNS}\s{{1,2}}(?!\S)|\s{{1}}"

CASELESS = (
    "letters outside ASCII count as small and as capital at once, and combining marks (Thai, "
    "Hindi, decomposed accents) are cut from their letters: such words may get other tokens than "
    "in training"
)
"""What llama.cpp does otherwise where a rule looks at capitals."""


@dataclass(frozen=True)
class Rule:
    """One way of cutting."""

    stages: tuple[str, ...]
    """Regular expressions in their order, and `BYTES`."""
    kept: str = ""
    """Its names in llama.cpp where words that are tokens stay whole; the first is written."""
    merged: str = ""
    """The same where every word is merged from bytes."""
    differs: str = ""
    """What llama.cpp does otherwise; empty where nothing is known."""

    def names(self, ignore_merges: bool) -> tuple[str, ...]:
        """Return llama.cpp's names for one of the two."""
        return tuple((self.kept if ignore_merges else self.merged).split())


RULES = (
    Rule(
        (LLAMA3, BYTES),
        kept="llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        merged="smaug-bpe dbrx glm4 chatglm-bpe",
    ),
    Rule(
        (QWEN2, BYTES),
        merged="qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2",
    ),
    Rule((QWEN35, BYTES), merged="qwen35"),
    Rule(
        (GPT2, BYTES),
        merged="gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum "
        "modern-bert mpt olmo jais trillion granite-docling exaone4 jina-v1-en jina-v2-code "
        "roberta-bpe",
    ),
    Rule(
        (DIGITS, GPT2, BYTES),
        merged="smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    ),
    Rule((TEKKEN, BYTES), kept="tekken", differs=CASELESS),
    Rule((GPT4O, BYTES), merged="gpt-4o llama4 kanana2 talkie minimax-m2", differs=CASELESS),
    Rule(
        (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3, BYTES),
        merged="deepseek-v3 hunyuan-dense joyai-llm",
    ),
    Rule(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGITS, BYTES),
        merged="deepseek-coder",
    ),
    Rule((SEED_CODER, BYTES), merged="seed-coder"),
    Rule((BAILING, BYTES), merged="bailingmoe bailingmoe2 llada-moe"),
    Rule((r"\p{N}{1,3}", MINICPM5, BYTES), kept="minicpm5"),
    Rule((BLOOM, BYTES), merged="bloom poro-chat gpt3-finnish"),
    Rule((BLOOM, DIGITS, BYTES), merged="viking"),
    Rule((JAIS2, BYTES), merged="jais-2"),
    Rule(
        ("punctuation:contiguous", GPT2, BYTES, DIGIT_RUNS, "[0-9][0-9][0-9]"),
        merged="falcon",
    ),
)
"""Every way that both write; the first ones are the most usual."""

_NAMES = """a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe
    command-r dbrx deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 exaone exaone-moe
    exaone4 f2llmv2 falcon falcon-h1 falcon3 gemma4 gigachat glm4 glm5 gpt-2 gpt-4o gpt3-finnish
    granite-docling granite-embed-multi-311m granite-embed-multi-97m grok-2 hunyuan hunyuan-dense
    hy_v4 jais jais-2 jina-de jina-es jina-v1-en jina-v2-code jina-v2-de jina-v2-es jina-v5-nano
    joyai-llm kanana2 kimi-k2 kolibri kormo laguna lfm2 llada-moe llama-bpe llama-v3 llama3 llama4
    megrez mellum mellum2 midm-2.0 minerva-7b minicpm5 minimax-m2 mmbert modern-bert mpt olmo
    phi-2 pixtral poro-chat qwen2 qwen35 refact roberta-bpe sarvam-moe seed-coder smaug-bpe smollm
    solar-open spark2_5 stablelm2 starcoder superbpe talkie tekken tiny_aya trillion ufakzeka
    viking whitespace youtu"""
NAMES = tuple(_NAMES.split())
"""Every name that llama.cpp knows (src/llama-vocab.cpp, autumn 2026)."""


def rule_of(name: str) -> Rule | None:
    """Return the rule that a name of llama.cpp's stands for, where it is one of ours."""
    return next((rule for rule in RULES if name in f"{rule.kept} {rule.merged}".split()), None)


def check_name(name: str) -> str:
    """Return a name that somebody gave.

    Raises:
        ModelError: llama.cpp has no such pre-tokenizer.
    """
    if name not in NAMES:
        raise ModelError(
            f"{UNKNOWN_NAME}: --pre-tokenizer {name}: llama.cpp knows no such pre-tokenizer"
            f"{near_names(name, NAMES)}",
            hint="one of " + " ".join(NAMES),
        )
    return name
