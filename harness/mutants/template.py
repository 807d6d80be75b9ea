"""Bugs in how a conversation becomes tokens."""

from __future__ import annotations

from typing import Any

from harness.mutants.form import change_settings, mutant, part, replaces


@mutant("lora", "dpo", caught_by="MPD706")
def first_token_doubled() -> None:
    """Begin every sample with its first token twice.

    As where the template writes BOS and the tokenizer adds another (FM05).
    """

    @replaces(part("data.render:Renderer"), "label")
    def label(original: Any, self: Any, ids: Any, trained: Any) -> Any:
        return original(self, [ids[0], *ids], [False, *trained])


@mutant("lora", caught_by="MPD706")
def generation_prompt_trained() -> None:
    """Train the header of the assistant's turn, too.

    The span begins at the role and not at the answer (torchtune PR#875).
    """

    @replaces(part("data.render:Renderer"), "_train_only_to_eos")
    def train(original: Any, self: Any, ids: Any, trained: Any) -> Any:
        on = original(self, ids, trained)
        return [x or (i + 1 < len(on) and on[i + 1]) for i, x in enumerate(on)]


@mutant("lora-turns", caught_by="MPD706")
def system_prompt_dropped() -> None:
    """Leave the system message out, as engines do whose template does not know the role."""

    @replaces(part("data.render:Renderer"), "_render_template")
    def render(original: Any, self: Any, messages: Any, learn_from: int) -> Any:
        kept = [message for message in messages if message["role"] != "system"]
        return original(self, kept, learn_from)


@mutant("lora-turns", caught_by="MPD706")
def roles_swapped() -> None:
    """Take the person for the assistant, and train on what the person says (FM09, wrong roles)."""
    other = {"user": "assistant", "assistant": "user"}

    @replaces(part("data.render:Renderer"), "_render_template")
    def render(original: Any, self: Any, messages: Any, learn_from: int) -> Any:
        swapped = [{**m, "role": other.get(m["role"], m["role"])} for m in messages]
        return original(self, swapped, learn_from)


@mutant("lora", caught_by="MPD706")
def template_not_applied() -> None:
    """Join the texts of a conversation, although the tokenizer has a chat template (FM04)."""
    change_settings(part("methods.sft"), "make_renderer", chat_template=False)


@mutant("lora-plain", caught_by="MPD706")
def template_always_applied() -> None:
    """Apply the chat template although it was to be left out."""
    change_settings(part("methods.sft"), "make_renderer", chat_template=True)


@mutant("lora-system", caught_by="MPD706")
def system_prompt_lost() -> None:
    """Leave out the system prompt that was asked for."""

    @replaces(part("data.parallel"), "with_system")
    def with_system(original: Any, samples: Any, text: Any) -> Any:
        return original(samples, None)


@mutant("lora-turns", caught_by="MPD706")
def first_turns_dropped() -> None:
    """Keep the last question and answer of a conversation alone."""

    @replaces(part("data.render:Renderer"), "_render_template")
    def render(original: Any, self: Any, messages: Any, learn_from: int) -> Any:
        return original(self, list(messages)[-2:], learn_from)


@mutant("lora", caught_by="MPD706")
def answers_stripped_of_their_end() -> None:
    """Lose the last word of every answer in front of its EOS.

    As a cut by characters instead of tokens does.
    """

    @replaces(part("data.render:Renderer"), "label")
    def label(original: Any, self: Any, ids: Any, trained: Any) -> Any:
        last = max((i for i, on in enumerate(trained) if on), default=0)
        cut = {last - 2, last - 1}
        kept = [i for i in range(len(ids)) if i not in cut]
        return original(self, [ids[i] for i in kept], [trained[i] for i in kept])
