"""Evidence about chat templates: read, and parsed in jinja's sandbox without being compiled."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as LoopControls
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from harness.evidence.files.inventory import read_settings
from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.checkpoint import Files
from harness.facts.files import Template
from harness.facts.gguf import Gguf
from harness.registry import Missing, NotApplicable
from mudpuppy.files import open_regular

LIMIT_BYTES = 200_000
"""Length of all templates of a folder together that is parsed, half a second; the longest of the
public ones have some 30,000."""
SECONDS = 1.0
"""Processor time of this thread after which no further template of a folder is parsed."""
FILE = "chat_template.jinja"
GGUF_KEY = "tokenizer.chat_template"
"""Setting of a GGUF file that holds a template; `.tool_use` and the like may follow."""
SETTINGS = ("chat_template.json", "processor_config.json", "tokenizer_config.json")
"""JSON files that may hold a template, under `chat_template`."""


class _Generation(Extension):
    """Knows the tag `generation`, around what the assistant says, as transformers does."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the statements between the tags as one block."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


@provides("templates")
def parse_templates(evidence: CheckpointEvidence) -> tuple[Template, ...]:
    """Return every chat template of the folder, and whether it parses."""
    found = list(list_templates(evidence))
    if not found:
        raise NotApplicable("the folder holds no chat template")
    texts = {text: file for file, _, text in found}
    if sum(map(len, texts)) > LIMIT_BYTES:
        which = f"the template in {found[0][0]} is" if len(texts) == 1 else "the templates are"
        raise Missing(f"{which} longer than {LIMIT_BYTES:,} bytes")
    until = time.thread_time() + SECONDS
    parsed: dict[str, Template] = {}
    for text, file in texts.items():
        if time.thread_time() > until:
            raise Missing(f"the templates of the folder take longer than {SECONDS:g} s to parse")
        parsed[text] = _parse(file, "", text)
    return tuple(replace(parsed[text], file=file, name=name) for file, name, text in found)


def make_world() -> ImmutableSandboxedEnvironment:
    """Return a sandbox with the tags that chat templates may use."""
    return ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControls]
    )


def list_templates(evidence: CheckpointEvidence) -> Iterator[tuple[str, str, str]]:
    """Yield file, name and text of every template."""
    files: Files = evidence.get("files")
    gguf: Gguf | None = evidence.find("gguf") if files.is_gguf else None
    for key, text in ({} if gguf is None else gguf.settings).items():
        if key.startswith(GGUF_KEY) and isinstance(text, str):
            yield files.names[0], key.removeprefix(GGUF_KEY).strip("."), text
    if FILE in files.names:
        yield FILE, "", _read(evidence)
    for file in SETTINGS:
        if file not in files.names or file in files.unreadable_json:
            continue
        yield from _listed(file, read_settings(evidence, file).get("chat_template"))


def _listed(file: str, value: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(value, str):
        yield file, "", value
    for one in value[:50] if isinstance(value, list) else ():
        if isinstance(one, dict) and isinstance(one.get("template"), str):
            yield file, str(one.get("name", ""))[:40], one["template"]


def _read(evidence: CheckpointEvidence) -> str:
    try:
        with open_regular(evidence.folder / FILE) as handle:
            raw = handle.read(LIMIT_BYTES + 1)
    except OSError as problem:
        raise Missing(f"{FILE} cannot be read: {problem.strerror}") from problem
    return raw.decode("utf-8", "replace")


def _parse(file: str, name: str, text: str) -> Template:
    world = make_world()
    try:
        tree = world.parse(text)
        unknown = next(_unknown(world, tree), None)
    except TemplateSyntaxError as problem:
        said = (problem.message or "it is no template")[:200]
        return Template(file=file, name=name, problem=said, line=problem.lineno)
    except RecursionError:
        return Template(file=file, name=name, problem="it is nested too deeply")
    if unknown is not None:
        return Template(file=file, name=name, problem=unknown[0], line=unknown[1])
    return Template(file=file, name=name)


def _unknown(
    world: ImmutableSandboxedEnvironment, tree: nodes.Template
) -> Iterator[tuple[str, int]]:
    """Yield filters and tests that transformers' templates do not have, with their lines."""
    for one in tree.find_all(nodes.Filter):
        if one.name not in world.filters:
            yield f"no filter is called '{one.name[:60]}'", one.lineno
    for test in tree.find_all(nodes.Test):
        if test.name not in world.tests:
            yield f"no test is called '{test.name[:60]}'", test.lineno
