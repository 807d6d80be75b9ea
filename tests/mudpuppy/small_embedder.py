"""A small sentence-transformers model made of its own modules: words with one meaning are one."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

WIDTH = 256


def save_embedder(
    folder: Path,
    texts: Iterable[str],
    meanings: Mapping[str, str] | None = None,
    *,
    dead: bool = False,
) -> Path:
    """Save a model that averages word vectors; needs sentence-transformers.

    Args:
        folder: where to.
        texts: what it knows the words of; all others are one word.
        meanings: words that mean the same as another.
        dead: map everything to one point.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    same = meanings or {}
    words = sorted({word for text in texts for word in re.findall(r"\w+", text.lower())} | {*same})
    vocabulary = {word: place for place, word in enumerate(["[unk]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation("removed")]
    )
    rows = [
        np.random.default_rng(zlib.crc32(same.get(word, word).encode())).standard_normal(WIDTH)
        for word in vocabulary
    ]
    weights = np.ones((len(rows), WIDTH)) if dead else np.stack(rows)
    static = StaticEmbedding(tokenizer, embedding_weights=weights.astype("float32"))
    SentenceTransformer(modules=[static], device="cpu").save(str(folder))
    return folder
