"""A TRL trainer trains a streamed model to the same bits as one that fits."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from mudpuppy.memory.streaming import LayerStream, place_for_streaming, stream_layers
from tests.mudpuppy.quant.tiny_llama import make_llama


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, 96)}}
    core = Tokenizer(WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


def train(folder, *, streamed: bool) -> tuple[torch.nn.Module, list[float], LayerStream | None]:
    model = make_llama(num_hidden_layers=3)
    generator = torch.Generator().manual_seed(2)
    rows = [
        [*torch.randint(2, 96, (5 + i % 4,), generator=generator).tolist(), 1] for i in range(12)
    ]
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        activation_checkpointing=False,
        use_cpu=True,
        bf16=False,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        eval_strategy="steps",
        eval_steps=2,
        disable_tqdm=True,
    )
    stream = None
    if streamed:
        place_for_streaming(model, "cpu")
        stream = stream_layers(model, "cpu")
    data = Dataset.from_dict({"input_ids": rows})
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        eval_dataset=data.select(range(4)),
        processing_class=make_tokenizer(),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return model, losses, stream


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_three_trainer_steps_with_evaluation_are_bit_identical(tmp_path):
    plain, expected, _ = train(tmp_path / "plain", streamed=False)
    model, losses, stream = train(tmp_path / "streamed", streamed=True)
    assert losses == expected
    assert losses[-1] < losses[0]
    for (name, got), want in zip(
        model.state_dict().items(), plain.state_dict().values(), strict=True
    ):
        assert torch.equal(got, want), name
    assert stream is not None
    size = max(flat.size for flat in stream.flats)
    assert stream.ledger.backward_bytes == 6 * (3 - 2) * size  # three steps of two batches
    assert stream.ledger.forward_bytes > 6 * 3 * size  # the evaluation reads them once more
    assert stream.ledger.peak_layers == 2
