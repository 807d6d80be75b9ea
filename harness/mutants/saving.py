"""Bugs in what is written."""

from __future__ import annotations

from typing import Any

from harness.mutants.form import change_json, change_saved_adapter, mutant, part, replaces


class _Nothing:
    """Stands in for a tokenizer that is not saved."""

    def save_pretrained(self, folder: Any) -> None:
        del folder


def _after_adapter(change: Any) -> None:
    """Do something with the folder of every adapter that is saved."""

    @replaces(part("engine"), "save_adapter")
    def save(original: Any, model: Any, tokenizer: Any, folder: Any, base: str) -> None:
        original(model, tokenizer, folder, base)
        change(folder)


@mutant("full", "full-streaming", caught_by="MPD713")
def weights_alone_saved() -> None:
    """Save the weights without tokenizer and template (FM04)."""

    @replaces(part("engine"), "save_model")
    def save(original: Any, model: Any, tokenizer: Any, *words: Any) -> None:
        original(model, _Nothing(), *words)


@mutant("lora", caught_by="MPD713")
def adapter_without_tokenizer() -> None:
    """Save an adapter without the tokenizer that it was trained with (FM04)."""

    @replaces(part("engine"), "save_adapter")
    def save(original: Any, model: Any, tokenizer: Any, folder: Any, base: str) -> None:
        original(model, _Nothing(), folder, base)


@mutant("full-bf16", caught_by="MPD712")
def saved_in_fp32() -> None:
    """Save the fp32 master weights where the run was to be saved in bf16: twice the size."""

    @replaces(part("engine"), "save_model")
    def save(original: Any, model: Any, tokenizer: Any, folder: Any, dtype: Any) -> None:
        del dtype
        original(model, tokenizer, folder, next(model.parameters()).dtype)


@mutant("full", caught_by="MPD103")
def shard_missing() -> None:
    """Lose one of the weights files (FM45)."""

    @replaces(part("engine"), "save_model")
    def save(original: Any, model: Any, tokenizer: Any, folder: Any, dtype: Any) -> None:
        whole = model.save_pretrained
        model.save_pretrained = lambda to: whole(to, max_shard_size="200KB")
        original(model, tokenizer, folder, dtype)
        del model.save_pretrained
        sorted(folder.glob("model-*.safetensors"))[0].unlink()


@mutant("lora", caught_by="MPD707")
def half_of_the_adapter_saved() -> None:
    """Leave the tensors of one block out of the file (FM34)."""
    change_saved_adapter(lambda name, x: None if ".layers.0." in name else (name, x))


@mutant("lora", caught_by="MPD707")
def adapter_saved_with_prefix() -> None:
    """Save under the names of torch.compile's wrapper, which no loader finds again (FM22)."""
    change_saved_adapter(lambda name, x: (name.replace(".layers.", "._orig_mod.layers."), x))


@mutant("lora", caught_by="MPD707")
def adapter_saved_too_early() -> None:
    """Save an adapter of before the last steps: here, nine tenths of the way."""
    change_saved_adapter(lambda name, x: (name, x * 0.9 if "lora_B" in name else x))


@mutant("lora", caught_by="MPD707")
def adapter_rounded_when_saved() -> None:
    """Save an fp32 adapter in bf16."""
    change_saved_adapter(lambda name, x: (name, x.bfloat16()))


@mutant("lora", caught_by="MPD707 MPD712")
def adapter_settings_stale() -> None:
    """Write the settings of an earlier adapter beside the new weights."""
    _after_adapter(lambda folder: change_json(folder / "adapter_config.json", lora_alpha=1))


@mutant("lora", caught_by="MPD408")
def adapter_names_another_base() -> None:
    """Name another base in the adapter's settings than the one it was trained on (FM35)."""
    name = "meta-llama/Llama-2-7b-hf"
    _after_adapter(
        lambda folder: change_json(folder / "adapter_config.json", base_model_name_or_path=name)
    )


@mutant("lora-checkpoints", caught_by="MPD714")
def checkpoints_left() -> None:
    """Leave the checkpoints, with their pickles, in the finished folder."""

    @replaces(part("engine"), "remove_checkpoints")
    def remove(*_: Any) -> None:
        return None


@mutant("lora", "full", caught_by="MPD711")
def scratch_left() -> None:
    """Leave a half-written file of the trainer's in the finished folder."""

    @replaces(part("engine"), "finish")
    def finish(original: Any, job: Any, *words: Any) -> Any:
        (job.config.output / "model.safetensors.tmp").write_bytes(b"torn")
        return original(job, *words)


@mutant("full", caught_by="MPD713")
def generation_settings_lost() -> None:
    """Save a model whose generation settings name no end (FM03)."""

    @replaces(part("engine"), "save_model")
    def save(original: Any, model: Any, tokenizer: Any, folder: Any, dtype: Any) -> None:
        original(model, tokenizer, folder, dtype)
        change_json(folder / "generation_config.json", eos_token_id=None)


@mutant("lora", "full", caught_by="MPD713")
def padding_token_replaced() -> None:
    """Save a tokenizer that pads with the end of a turn: the next run masks it (FM01)."""
    load = part("loading")

    @replaces(load, "load_tokenizer")
    def tokenizer(original: Any, *words: Any) -> Any:
        made = original(*words)
        made.pad_token = made.eos_token
        return made


@mutant("lora", "full", caught_by="MPD713")
def template_replaced() -> None:
    """Save another chat template than the one that was trained (FM04, FM65)."""
    plain = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"

    @replaces(part("engine"), "staging")
    def staging(original: Any, *words: Any, **named: Any) -> Any:
        return _replacing_template(original(*words, **named), plain)


def _replacing_template(inner: Any, template: str) -> Any:
    import contextlib

    @contextlib.contextmanager
    def around() -> Any:
        with inner as folder:
            yield folder
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")

    return around()
