"""Images through the engine: labels token by token, then train, save, reload."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from mudpuppy.config_check import load_config
from mudpuppy.data.samples import ChatSample, ImageSample
from mudpuppy.engine import train
from mudpuppy.errors import DatasetError, EngineError, ModelError, UnsupportedCombination
from mudpuppy.loading import load
from mudpuppy.methods.multimodal import FAMILY, ImageCollator, padding_processor, render
from mudpuppy.provenance import read_provenance
from mudpuppy.runtime import choose_runtime
from mudpuppy.tiny import resolve_model

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}
IMAGE = {"type": "image"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


@pytest.fixture(scope="module")
def base() -> str:
    return resolve_model("tiny:llava")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[str, str]:
    """Real files: PNG, JPEG, and a PNG with transparency; of different sizes."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = {}
    for index, (name, colour) in enumerate(COLOURS.items()):
        path = folder / f"{name}.{'jpg' if index == 1 else 'png'}"
        image = Image.new("RGB", (20 + 7 * index, 31), colour)
        (image.convert("RGBA") if index == 2 else image).save(path)
        paths[name] = str(path)
    return paths


@pytest.fixture(scope="module")
def samples(pictures) -> list[Any]:
    asked = [
        ImageSample(
            line=line,
            messages=(
                {"role": "user", "content": [IMAGE, text("Which colour is this?")]},
                {"role": "assistant", "content": [text(f"It is {name}.")]},
            ),
            images=(path,),
        )
        for line, (name, path) in enumerate(pictures.items(), start=1)
    ]
    two = ImageSample(
        line=4,
        messages=(
            {"role": "system", "content": [text("Be brief.")]},
            {"role": "user", "content": [text("Compare"), IMAGE, text("and"), IMAGE]},
            {"role": "assistant", "content": [text("Red, then blue.")]},
            {"role": "user", "content": [text("And again?")]},
            {"role": "assistant", "content": [text("Red and blue.")]},
        ),
        images=(pictures["red"], pictures["blue"]),
    )
    plain = ChatSample(
        line=5,
        messages=(
            {"role": "user", "content": "Who lives in the pond?"},
            {"role": "assistant", "content": "A mud puppy."},
        ),
    )
    return [*asked, two, plain]


def settings(base: str, output: Path, **more: Any):
    given = {
        "model": base,
        "dataset": output.parent / "set.jsonl",
        "output": output,
        "method": "multimodal",
        "precision": "fp32",
        "max_steps": 3,
        "lora_r": 4,
        **more,
    }
    return load_config(given)


@pytest.fixture
def opened(base, tmp_path):
    """The model and its processor, as the engine loads them."""
    config = settings(base, tmp_path / "out")
    return load(base, config, choose_runtime(config), FAMILY.form), config


def trained_text(loaded, row) -> str:
    ids = [label for label in row.labels if label != -100]
    return loaded.tokenizer.decode(ids)


def test_only_what_the_assistant_writes_is_trained_token_by_token(opened, samples):
    loaded, config = opened
    rows = render(loaded, samples, config)
    image_id = loaded.tokenizer.convert_tokens_to_ids("<image>")
    end = loaded.tokenizer.eos_token
    wanted = [
        f"It is red.{end}",
        f"It is green.{end}",
        f"It is blue.{end}",
        f"Red, then blue.{end}Red and blue.{end}",
        f"A mud puppy.{end}",
    ]
    assert [trained_text(loaded, row) for row in rows] == wanted
    for row, images in zip(rows, (1, 1, 1, 2, 0), strict=True):
        assert row.input_ids.count(image_id) == 4 * images  # 2 x 2 patches an image
        assert len(row.input_ids) == len(row.labels)
        pairs = list(zip(row.input_ids, row.labels, strict=True))
        assert all(label in (-100, token) for token, label in pairs)
        assert all(label == -100 for token, label in pairs if token == image_id)
    whole = loaded.tokenizer.decode(rows[0].input_ids)
    assert whole == (
        f"<|user|>{'<image>' * 4}Which colour is this?{end}<|assistant|>It is red.{end}"
    )


def test_a_template_without_tags_gives_the_same_labels(opened, samples):
    """Most templates of real models have no generation tags."""
    loaded, config = opened
    rows = render(loaded, samples, config)
    template = loaded.processor.chat_template
    for tag in ("{%- generation -%}", "{%- endgeneration -%}"):
        assert tag in template
        template = template.replace(tag, "")
    loaded.processor.chat_template = template
    assert [row.labels for row in render(loaded, samples, config)] == [row.labels for row in rows]


def test_all_tokens_but_those_of_images_are_trained_on_request(base, opened, samples, tmp_path):
    loaded, _ = opened
    config = settings(base, tmp_path / "all", response_only=False)
    image_id = loaded.tokenizer.convert_tokens_to_ids("<image>")
    for row in render(loaded, samples, config):
        assert row.labels == [-100 if t == image_id else t for t in row.input_ids]


def test_a_batch_is_padded_and_its_padding_never_trained(opened, samples, pictures):
    loaded, config = opened
    rows = render(loaded, samples, config)
    batch = ImageCollator(processor=padding_processor(loaded))([row.columns() for row in rows])
    assert batch["pixel_values"].shape == (5, 3, 16, 16)
    for index, row in enumerate(rows):
        size = len(row.input_ids)
        assert batch["input_ids"][index, :size].tolist() == row.input_ids
        assert batch["labels"][index, :size].tolist() == row.labels
        assert batch["attention_mask"][index].tolist() == [1] * size + [0] * (
            batch["input_ids"].shape[1] - size
        )
        assert set(batch["labels"][index, size:].tolist()) <= {-100}
    with Image.open(pictures["green"]) as image:
        alone = loaded.processor.image_processor(image.convert("RGB"), return_tensors="pt")
    assert torch.equal(batch["pixel_values"][1], alone["pixel_values"][0])
    only_text = ImageCollator(processor=padding_processor(loaded))([rows[4].columns()])
    assert "pixel_values" not in only_text


def test_a_batch_equals_that_of_trl(opened, samples, pictures):
    """TRL's collator, which relies on the generation tags that this template has."""
    loaded, config = opened
    processor = padding_processor(loaded)
    rows = render(loaded, samples, config)
    ours = ImageCollator(processor=processor)([row.columns() for row in rows])
    examples = []
    for sample in samples:
        images = [Image.open(path).convert("RGB") for path in getattr(sample, "images", ())]
        messages = [{"role": m["role"], "content": m["content"]} for m in sample.messages]
        examples.append({"messages": messages, "images": images})
    theirs = DataCollatorForVisionLanguageModeling(processor, assistant_only_loss=True)(examples)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_cut_may_shorten_an_answer_but_never_an_image(base, opened, samples, tmp_path):
    loaded, _ = opened
    whole = render(loaded, samples[:1], settings(base, tmp_path / "a"))[0]
    shorter = settings(base, tmp_path / "b", max_length=len(whole.input_ids) - 1)
    (row,) = render(loaded, samples[:1], shorter)
    assert row.truncated
    assert row.input_ids == whole.input_ids[:-1]
    batch = ImageCollator(processor=padding_processor(loaded))([row.columns()])
    assert batch["input_ids"].tolist() == [row.input_ids]
    assert batch["labels"].tolist() == [row.labels]
    with pytest.raises(DatasetError, match="no sample"):  # the second image does not fit
        render(loaded, samples[3:4], settings(base, tmp_path / "c", max_length=14))


class Recorder:
    """Keeps the first rows as a batch, and what the trained model answers."""

    def __init__(self, processor):
        self.processor = processor

    def on_prepared(self, model, tokenizer, samples, eos_ids):
        self.batch = ImageCollator(processor=self.processor)([r.columns() for r in samples])
        del self.batch["labels"]
        self.before = {n: p.detach().clone() for n, p in model.named_parameters()}

    def on_fitted(self, model):
        self.logits = logits_of(model, self.batch)
        after = dict(model.named_parameters())
        self.moved = {n for n, p in self.before.items() if not torch.equal(p, after[n])}


def test_a_sample_whose_second_image_is_cut_is_left_out(base, opened, pictures, tmp_path):
    """Its first answer is whole, but a model cannot place half an image."""
    loaded, _ = opened
    turns = [
        message
        for name in ("red", "blue")
        for message in (
            {"role": "user", "content": [IMAGE, text("What?")]},
            {"role": "assistant", "content": [text(name)]},
        )
    ]
    images = (pictures["red"], pictures["blue"])
    sample = ImageSample(line=1, messages=tuple(turns), images=images)
    (row,) = render(loaded, [sample], settings(base, tmp_path / "a"))
    for cut, count in ((row.image_end, 1), (row.image_end - 1, 0)):
        config = settings(base, tmp_path / str(cut), max_length=cut)
        try:
            rows = render(loaded, [sample], config)
        except DatasetError:
            rows = []
        assert len(rows) == count


@torch.no_grad()
def logits_of(model, batch):
    return model.eval()(**batch).logits.float()


def fit(base, output, samples, **more):
    seen = Recorder(AutoProcessor.from_pretrained(base))
    losses: list[float] = []
    record = train(
        settings(base, output, **more),
        samples=samples,
        watcher=seen,
        report=lambda step, _: losses.append(step.loss),
    )
    return losses, record, seen


def test_full_training_saves_a_model_that_plain_transformers_opens(base, samples, tmp_path):
    """Logits equal bit for bit in fp32, processor included."""
    losses, record, seen = fit(
        base, tmp_path / "out", samples, use_peft=False, batch_size=5, learning_rate=1e-3
    )
    assert losses[-1] < losses[0]
    model, report = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(report.values())
    assert torch.equal(logits_of(model, seen.batch), seen.logits)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    original = AutoProcessor.from_pretrained(base)
    assert processor.to_dict() == original.to_dict()
    assert processor.chat_template == original.chat_template
    assert any("vision_tower" in name for name in seen.moved)
    assert record.choices["trained_part"].value == "the whole model"
    manifest = read_provenance(tmp_path / "out")
    assert (manifest["kind"], manifest["method"]) == ("model", "multimodal")
    assert manifest["labels"]["samples"] == 5
    assert manifest["labels"]["samples_ending_in_eos"] == 5


def test_an_adapter_trains_the_language_model_alone(base, samples, tmp_path):
    """Reloaded through PEFT: logits within 1e-6; merged and saved: within 1e-5."""
    losses, record, seen = fit(
        base, tmp_path / "out", samples, batch_size=5, learning_rate=1e-2, merge_lora=True
    )
    assert losses[-1] < losses[0]
    assert seen.moved
    assert all("lora_" in name and "language_model" in name for name in seen.moved)
    assert record.choices["trained_part"].value == "the language model"
    plain = AutoModelForImageTextToText.from_pretrained(base)
    adapted = PeftModel.from_pretrained(plain, tmp_path / "out")
    torch.testing.assert_close(logits_of(adapted, seen.batch), seen.logits, rtol=1e-6, atol=1e-6)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "out" / "merged")
    torch.testing.assert_close(logits_of(merged, seen.batch), seen.logits, rtol=1e-5, atol=1e-5)
    for folder in ("out", "out/merged"):
        assert AutoProcessor.from_pretrained(tmp_path / folder).image_processor is not None
        assert read_provenance(tmp_path / folder)["method"] == "multimodal"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "AutoModelForImageTextToText" in card


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp8"])
@pytest.mark.parametrize("use_peft", [True, False])
def test_every_precision_trains_and_reloads(base, samples, tmp_path, precision, use_peft):
    """16-bit computation: logits within 3 % of the norm of those while training, fp8 10 %."""
    losses, _, seen = fit(base, tmp_path / "out", samples, precision=precision, use_peft=use_peft)
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    start = base if use_peft else tmp_path / "out"
    model = AutoModelForImageTextToText.from_pretrained(start, dtype=dtype)
    assert model.dtype == dtype
    if use_peft:
        model = PeftModel.from_pretrained(model, tmp_path / "out")
    seen.batch["pixel_values"] = seen.batch["pixel_values"].to(dtype)
    error = (logits_of(model, seen.batch) - seen.logits).norm() / seen.logits.norm()
    assert len(losses) == 3
    assert float(error) < (0.1 if precision == "fp8" else 0.03)


@pytest.mark.parametrize(
    "more",
    [
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "use_peft": False},
        {"num_workers": 1},
        {"batch_size": 1, "gradient_accumulation": 5},
    ],
)
def test_what_saves_memory_or_time_changes_no_loss(base, samples, tmp_path, more):
    """1e-5: the order of sums over a batch."""
    same = {"use_peft": more.get("use_peft"), "batch_size": 5}
    losses, _, _ = fit(base, tmp_path / "plain", samples, **same)
    others, _, _ = fit(base, tmp_path / "other", samples, **{**same, **more})
    assert others == pytest.approx(losses, rel=1e-5)


def test_early_stopping_keeps_the_best_and_dora_merges(base, samples, tmp_path):
    _, record, seen = fit(
        base,
        tmp_path / "out",
        samples,
        early_stopping=1,
        eval_fraction=0.4,
        eval_steps=1,
        learning_rate=1e-2,
        max_steps=6,
        use_dora=True,
        merge_lora=True,
        merge_precision="bf16",
    )
    assert record.eval_loss is not None
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "out" / "merged")
    assert merged.dtype == torch.bfloat16
    seen.batch["pixel_values"] = seen.batch["pixel_values"].bfloat16()
    error = (logits_of(merged, seen.batch) - seen.logits).norm() / seen.logits.norm()
    assert float(error) < 0.02


def test_an_adapter_is_continued(base, samples, tmp_path):
    fit(base, tmp_path / "one", samples, learning_rate=1e-2)
    losses, _, seen = fit(base, tmp_path / "two", samples, adapter=tmp_path / "one")
    fresh, _, _ = fit(base, tmp_path / "three", samples)
    assert losses[0] < fresh[0]
    assert all("lora_" in name and "language_model" in name for name in seen.moved)


def test_batches_are_filled_to_a_number_of_tokens(base, samples, tmp_path):
    """The longest row has 35 tokens or so: 72 hold it with one other, and all five take three."""
    losses, record, _ = fit(base, tmp_path / "out", samples, tokens_per_batch=72, epochs=1)
    assert len(losses) == record.steps == 3


def test_a_dataset_with_pictures_beside_it_is_read_and_trained(base, pictures, tmp_path):
    """The three spellings, through the engine's own reading."""
    path = tmp_path / "set.jsonl"
    for name, picture in pictures.items():
        (tmp_path / name).write_bytes(Path(picture).read_bytes())
    answer = {"role": "assistant", "content": "It is coloured."}
    asked = [IMAGE, text("Which colour?")]
    named = [{"type": "image", "image": "blue"}, text("Which colour?")]
    rows = [
        {"images": ["red"], "messages": [{"role": "user", "content": asked}, answer]},
        {"messages": [{"role": "user", "content": named}, answer]},
        {
            "image": "green",
            "messages": [{"role": "user", "content": "<image>Which colour?"}, answer],
        },
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    record = train(settings(base, tmp_path / "out", batch_size=3))
    assert record.labels.samples == record.labels.samples_ending_in_eos == 3
    (tmp_path / "blue").unlink()
    with pytest.raises(DatasetError) as caught:
        train(settings(base, tmp_path / "again"))
    assert (caught.value.line, "blue" in str(caught.value)) == (2, True)


def test_named_targets_stay_in_the_language_model(base, samples, tmp_path):
    _, _, seen = fit(base, tmp_path / "out", samples, lora_target_modules=("q_proj",))
    assert len(seen.moved) > 0
    assert all("language_model" in name and "q_proj" in name for name in seen.moved)


def test_the_loss_needs_the_picture(base, samples, tmp_path):
    """Three colours, one question: only who sees can answer. The loss falls to a third."""
    losses, _, _ = fit(
        base,
        tmp_path / "out",
        samples[:3],
        use_peft=False,
        max_steps=40,
        batch_size=3,
        learning_rate=5e-3,
    )
    assert losses[-1] < losses[0] / 3


def test_an_image_that_is_gone_or_broken_names_its_line(base, opened, tmp_path):
    loaded, config = opened
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    for path in (tmp_path / "gone.png", broken):
        sample = ImageSample(
            line=7,
            messages=(
                {"role": "user", "content": [IMAGE, text("What?")]},
                {"role": "assistant", "content": [text("That.")]},
            ),
            images=(str(path),),
        )
        with pytest.raises(DatasetError, match="image cannot be opened") as caught:
            render(loaded, [sample], config)
        assert caught.value.line == 7


def test_an_image_that_changed_since_stops_the_run(opened, samples):
    loaded, config = opened
    (row,) = render(loaded, samples[:1], config)
    columns = {**row.columns(), "input_ids": row.input_ids[1:]}  # as for a smaller image
    with pytest.raises(EngineError, match="was changed"):
        ImageCollator(processor=padding_processor(loaded))([columns])


def test_control_tokens_in_a_text_are_refused(opened, pictures):
    loaded, config = opened
    sample = ImageSample(
        line=3,
        messages=(
            {"role": "user", "content": [IMAGE, text("look <image> here")]},
            {"role": "assistant", "content": [text("Yes.")]},
        ),
        images=(pictures["red"],),
    )
    with pytest.raises(DatasetError, match="control token"):
        render(loaded, [sample], config)


def test_a_model_of_text_is_refused(tmp_path, samples):
    with pytest.raises(ModelError, match="a llama model reads no images"):
        train(settings(resolve_model("tiny:llama"), tmp_path / "out"), samples=samples)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "code"),
    [({"packing": True}, "MP-R31"), ({"chat_template": False}, "MP-R32")],
)
def test_what_cannot_work_is_refused_by_code(base, tmp_path, more, code):
    with pytest.raises(UnsupportedCombination, match=code):
        settings(base, tmp_path / "out", **more)
