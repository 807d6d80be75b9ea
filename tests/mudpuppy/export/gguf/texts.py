"""Text that tokenizers disagree about, and a little more to train them on."""

from __future__ import annotations

from mudpuppy.export.gguf.published import TEST_TEXT
from mudpuppy.tiny.corpus import conversations

TEXTS = {
    "empty": "",
    "plain": "The mud puppy lives in the reeds, and it's 12345 years old.",
    "one blank": " ",
    "blanks": "a  b   c    d        e ",
    "leading blanks": "   three, then words",
    "tabs": "\tif x:\n\t\treturn\t1",
    "lines": "one\n\ntwo\r\nthree\n\n\n\nfour\n",
    "trailing": "ends with blanks   \n  \n ",
    "contractions": "I'm, you're, they've, WE'LL, it'S, 'twas, o'clock, don't",
    "digits": "0 7 42 365 2024 31415 1234567890 3.14 1,000,000 ½ ² ٣ 一",
    "code": 'def f(x: int) -> str:\n    return f"{x!r}"  # TODO: x**2 != x//3 && y || !z;\n',
    "markup": "<div class='a'>&nbsp;</div> http://example.org/?q=1#top __init__ --flag=value",
    "accents": "Zürich, Ærøskøbing, naïve café, Łódź, ĞÜŞİÖÇ, ÉCOLE école",
    "greek": "Ἐν ἀρχῇ ἦν ὁ λόγος. ΑΒΓ αβγ",
    "cyrillic": "Съешь же ещё этих мягких французских булок, да выпей чаю",
    "chinese": "我想在苹果工作1314151天～，你好。",
    "japanese": "今日はいい天気ですね。カタカナとひらがな、漢字。",
    "korean": "안녕하세요 세계! 한국어 텍스트",
    "arabic": "مرحبا بالعالم، كيف حالك؟ ١٢٣",
    "hebrew": "שלום עולם",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 ❤️ ok 😀😀",
    "signs": "€ £ ¥ © ® ™ … — – “quoted” ‘so’ ∑∫√ →←",
    "blank signs": "a\u00a0b\u2003c\u3000d\u200be\ufefff",
    "control": "a\x00b\x01c\x7fd\x85e",
    "the converter's": TEST_TEXT,
}
"""Texts that every kind of tokenizer is held against llama.cpp with."""
MARKED = {
    "thai": "สวัสดีชาวโลก ภาษาไทย",
    "hindi": "नमस्ते दुनिया, हिन्दी पाठ",
    "decomposed": "Zu\u0308rich cafe\u0301 A\u030angstro\u0308m",
    "vocalised": "مَرْحَبًا",
}
"""Texts with combining marks, which some rules of llama.cpp cut otherwise."""
EVERYTHING = {**TEXTS, **MARKED}


def training_texts() -> list[str]:
    """Return what tokenizers of the tests are trained on."""
    said = [message["content"] for chat in conversations() for message in chat]
    return [*said[:400], *(text for text in EVERYTHING.values() for _ in range(4))]
