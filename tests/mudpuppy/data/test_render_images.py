"""Processors of other families: each writes images in its own way, the labels are the same."""

from pathlib import Path
from typing import Any

import pytest
import transformers
from PIL import Image

from mudpuppy.data.render import Renderer
from mudpuppy.data.render_images import ImageRenderer, ImageRow, open_rgb
from mudpuppy.data.samples import ChatSample, ImageSample
from mudpuppy.errors import ModelError
from mudpuppy.methods.multimodal import ImageCollator
from mudpuppy.tiny.corpus import conversations
from mudpuppy.tiny.families import IMAGE_TEMPLATE_PATH, VOCAB_SIZE
from mudpuppy.tiny.tokenizer import train_tokenizer

TEMPLATE = IMAGE_TEMPLATE_PATH.read_text(encoding="utf-8")
IDEFICS = (
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
)
GEMMA = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
SIDE = {"height": 16, "width": 16}


def tokenizer(*extra: str) -> Any:
    texts = [message["content"] for messages in conversations() for message in messages]
    return train_tokenizer(texts, VOCAB_SIZE, extra_tokens=extra)


def idefics3() -> Any:
    images = transformers.Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}
    )
    return transformers.Idefics3Processor(
        images, tokenizer(*IDEFICS), image_seq_len=1, chat_template=TEMPLATE
    )


def gemma3() -> Any:
    plain = tokenizer(*GEMMA.values())
    own = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        pad_token=plain.pad_token,
        eos_token=plain.eos_token,
        extra_special_tokens=GEMMA,
    )
    images = transformers.Gemma3ImageProcessorPil(size=SIDE)
    template = TEMPLATE.replace("'<image>'", "'<start_of_image>'")
    return transformers.Gemma3Processor(images, own, image_seq_length=4, chat_template=template)


def llava_next() -> Any:
    images = transformers.LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size=SIDE, image_grid_pinpoints=[[16, 32], [32, 16]]
    )
    return transformers.LlavaNextProcessor(
        images,
        tokenizer("<image>"),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )


def paligemma() -> Any:
    own = tokenizer("<image>")
    own.bos_token = "<|system|>"
    images = transformers.SiglipImageProcessorPil(size=SIDE)
    images.image_seq_length = 4
    return transformers.PaliGemmaProcessor(images, own, chat_template=TEMPLATE)


def render(processor: Any, folder: Path) -> list[ImageRow]:
    wide, high = str(folder / "wide.png"), str(folder / "high.jpg")
    Image.new("RGB", (40, 30), "red").save(wide)
    Image.new("RGB", (20, 50), "blue").save(high)
    picture = {"type": "image"}
    question = [
        {"type": "text", "text": "Compare"},
        picture,
        {"type": "text", "text": "and"},
        picture,
    ]
    answer = [{"type": "text", "text": "Red, then blue."}]
    samples = (
        ImageSample(
            line=1,
            messages=(
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
                {"role": "user", "content": [{"type": "text", "text": "Once more."}]},
                {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
            ),
            images=(wide, high),
        ),
        ChatSample(
            line=2,
            messages=(
                {"role": "user", "content": "Hi."},
                {"role": "assistant", "content": "Yes?"},
            ),
        ),
    )
    plain = Renderer(
        tokenizer=processor.tokenizer,
        eos_ids=frozenset([processor.tokenizer.eos_token_id]),
        use_template=True,
        response_only=True,
        max_length=200,
    )
    renderer = ImageRenderer(processor=processor, plain=plain, file="set.jsonl")
    return [renderer.render(sample) for sample in samples]


@pytest.mark.parametrize("family", [idefics3, gemma3, llava_next])
def test_the_answers_alone_are_trained_in_every_family(family, tmp_path):
    processor = family()
    rows = render(processor, tmp_path)
    end = processor.tokenizer.eos_token
    trained = [
        processor.tokenizer.decode([label for label in row.labels if label != -100]) for row in rows
    ]
    assert trained == [f"Red, then blue.{end}No.{end}", f"Yes?{end}"]
    assert 0 == rows[1].image_end < rows[0].image_end < len(rows[0].input_ids)
    assert set(rows[0].labels[: rows[0].image_end]) == {-100}


@pytest.mark.parametrize("family", [idefics3, gemma3, llava_next])
def test_a_batch_has_the_rows_as_they_were_rendered(family, tmp_path):
    processor = family()
    rows = render(processor, tmp_path)
    batch = ImageCollator(processor=processor)([row.columns() for row in rows])
    width = len(rows[0].input_ids)
    for index, row in enumerate(rows):
        assert batch["input_ids"][index, : len(row.input_ids)].tolist() == row.input_ids
        assert batch["labels"][index].tolist() == row.labels + [-100] * (width - len(row.labels))
        assert int(batch["attention_mask"][index].sum()) == len(row.input_ids)
    for name, tensor in batch.items():
        if name.endswith("type_ids"):
            assert tensor.shape == batch["input_ids"].shape


def test_a_processor_that_rewrites_the_text_is_refused(tmp_path):
    """PaliGemma's is no chat template's: it moves BOS and appends a line break."""
    with pytest.raises(ModelError, match="rewrites the text"):
        render(paligemma(), tmp_path)


def test_an_image_is_turned_upright_and_made_rgb(tmp_path):
    path = tmp_path / "turned.jpg"
    image = Image.new("L", (30, 20))
    image.getexif()[0x0112] = 6  # lies on its side
    image.save(path, exif=image.getexif())
    found = open_rgb(str(path))
    assert (found.mode, found.size) == ("RGB", (20, 30))
