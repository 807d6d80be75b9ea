"""Conversations about images: what the processor makes of them, and which tokens are trained.

A processor writes many tokens where the template writes one placeholder for an image, so the place
of the answer is known in the template's text and has to be found again in the processor's tokens.
It says itself which characters it replaced by which; what stands for an image is never trained.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from mudpuppy.data.images import image_source
from mudpuppy.data.render import GENERATION_TAG, IGNORED, RenderedSample, Renderer, assistant_spans
from mudpuppy.data.samples import ChatSample, ImageSample, Message
from mudpuppy.errors import DatasetError, ModelError, clip

Span = tuple[int, int]
"""Characters from the first up to, and without, the second."""
OTHER_FAMILY = "use a model of another family, such as LLaVA, LLaVA-NeXT, Idefics 3 or Gemma 3"
"""Advice where a processor hides what it does."""


@dataclass(frozen=True, kw_only=True)
class ImageRow(RenderedSample):
    """A conversation as the model sees it, without the pixels: those are made for each batch."""

    text: str
    """What the template wrote, with a placeholder for each image."""
    images: tuple[str, ...]
    """Where the images are, in the order of their placeholders."""
    image_end: int
    """Tokens up to the end of the last image."""

    def columns(self) -> dict[str, Any]:
        """Return what `mudpuppy.methods.multimodal.ImageCollator` takes."""
        return {
            "input_ids": self.input_ids,
            "labels": self.labels,
            "text": self.text,
            "images": list(self.images),
            "image_end": self.image_end,
        }


@dataclass(frozen=True, kw_only=True)
class ImageRenderer:
    """How conversations about images are rendered for one processor."""

    processor: Any
    """A transformers processor of text and images."""
    plain: Renderer
    """How the text is labelled."""
    file: str
    """The dataset, for messages."""

    @property
    def tokenizer(self) -> Any:
        """The tokenizer inside the processor."""
        return self.plain.tokenizer

    @property
    def max_length(self) -> int:
        """Tokens that are kept."""
        return self.plain.max_length

    def render(self, sample: ImageSample | ChatSample) -> ImageRow:
        """Process one sample and label it.

        A sample whose images do not fit into `max_length` tokens has nothing trained: an image that
        is cut has no meaning.

        Raises:
            DatasetError: an image cannot be opened.
            ModelError: the processor does not say where it put the images.
        """
        references = sample.images if isinstance(sample, ImageSample) else ()
        text, spans = self._render_text([_in_parts(message) for message in sample.messages])
        images = [self._open(reference, sample.line) for reference in references]
        encoded = self.processor(
            text=[text],
            images=[images] if images else None,
            add_special_tokens=adds_special_tokens(self.processor, text),
            return_text_replacement_offsets=True,
        )
        replaced = self._replacements(encoded, len(images))
        ids = list(encoded["input_ids"][0])
        offsets = self._offsets(_expand(text, replaced), ids, text)
        trained = _overlapping(offsets, [_shift(span, replaced) for span in spans])
        of_images = _overlapping(offsets, [tuple(one["new_span"]) for one in replaced])
        row = self.plain.label(ids, trained)
        image_end = max((i + 1 for i, on in enumerate(of_images) if on), default=0)
        is_whole = image_end <= len(row.input_ids)
        labels = [
            label if is_whole and not (i < len(of_images) and of_images[i]) else IGNORED
            for i, label in enumerate(row.labels)
        ]
        return ImageRow(
            input_ids=row.input_ids,
            labels=labels,
            truncated=row.truncated,
            text=text,
            images=tuple(references),
            image_end=image_end,
        )

    def _render_text(self, messages: list[Message]) -> tuple[str, list[Span]]:
        """Apply the template; return its text, and the characters that the assistant writes."""
        template = template_of(self.processor)
        if not GENERATION_TAG.search(template):
            return assistant_spans(self.processor, messages)
        texts, spans = render_jinja_template(
            conversations=[messages],
            chat_template=template,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        return texts[0], spans[0]

    def _open(self, reference: str, line: int) -> Any:
        try:
            return open_rgb(reference)
        except (OSError, ValueError) as error:
            reason = clip(str(error)) or type(error).__name__
            raise DatasetError(
                f"the image cannot be opened: {reason}",
                file=self.file,
                line=line,
                hint="name a PNG or JPEG file that exists",
            ) from None

    def _replacements(self, encoded: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
        """Return what the processor replaced by what, in order."""
        found = [one for row in encoded.get("text_replacement_offsets") or [] for one in row]
        if len(found) != count:
            raise ModelError(
                f"{type(self.processor).__name__} does not say where it puts the images "
                f"({count} images, {len(found)} places), so the answer cannot be found",
                hint=OTHER_FAMILY,
            )
        return found

    def _offsets(self, expanded: str, ids: list[int], text: str) -> list[Span]:
        """Return the characters of every token, after proving that the text is what was tokenised.

        Some processors write more into the text than images; a mask from characters would then lie
        beside the answer, and nothing would tell.
        """
        again = self.tokenizer(
            expanded,
            add_special_tokens=adds_special_tokens(self.processor, text),
            return_offsets_mapping=True,
        )
        if list(again["input_ids"]) != ids:
            raise ModelError(
                f"{type(self.processor).__name__} rewrites the text of the chat template, so the "
                "answer cannot be found in its tokens",
                hint=OTHER_FAMILY,
            )
        offsets: list[Span] = list(again["offset_mapping"])
        return offsets


def template_of(processor: Any) -> str:
    """Return the chat template of a processor, or of the tokenizer inside it.

    Raises:
        ModelError: there is none; nothing else says where an image belongs.
    """
    template = processor.chat_template or processor.tokenizer.chat_template
    if not isinstance(template, str):
        raise ModelError(
            "the processor has no chat template, so nothing says where an image belongs",
            hint="put the template of the model into chat_template.jinja",
        )
    return template


def adds_special_tokens(processor: Any, text: str) -> bool:
    """Return whether the tokenizer is to add BOS: as transformers does it where it generates."""
    bos = processor.tokenizer.bos_token
    return bos is not None and not text.startswith(bos)


def open_rgb(reference: str) -> Any:
    """Return an image as processors see it: upright, as its EXIF says, and in RGB.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no image.
    """
    from PIL import Image, ImageOps

    with Image.open(image_source(reference)) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def _in_parts(message: Message) -> Message:
    """Return a message with a list of parts for its content, as templates for images want it."""
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {"role": message["role"], "content": parts}


def _expand(text: str, replaced: Sequence[Mapping[str, Any]]) -> str:
    """Return the template's text with every placeholder replaced as the processor says."""
    pieces: list[str] = []
    last = 0
    for one in replaced:
        start, stop = one["span"]
        pieces += [text[last:start], one["replacement"]]
        last = stop
    return "".join([*pieces, text[last:]])


def _shift(span: Span, replaced: Sequence[Mapping[str, Any]]) -> Span:
    """Move characters of the template's text to where they are once images were written out."""
    ends = [one["span"][1] for one in replaced]
    gained = [0, *(one["new_span"][1] - one["span"][1] for one in replaced)]
    left, right = (char + gained[bisect_right(ends, char)] for char in span)
    return left, right


def _overlapping(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Return for every token whether it has a character of one of the spans."""
    return [
        any(start < stop and start < right and stop > left for left, right in spans)
        for start, stop in offsets
    ]
