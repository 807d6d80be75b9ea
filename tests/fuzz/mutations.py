"""Ways of damaging a checkpoint: bytes, headers, JSON, templates, folders; drawn from one seed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.seeds import Files

BOMBS = (
    "{% for a in range(10**9) %}{% endfor %}",
    "{{ 'a' * 10**9 }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('touch HACKED').read() }}",
    "{{ messages|map('attr', '__class__')|list }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ 9**9**9 }}",
    "{% set x = namespace(s='a') %}{% for i in range(64) %}{% set x.s = x.s + x.s %}{% endfor %}",
    "{{ '%99999999d' % 1 }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ 'a'.rjust(10**9) }}",
    "{{ lipsum(n=10**6) }}",
    "{{ range(10**9)|list|length }}",
    "{{ [1]*10**9 }}",
    "{% if" + " (" * 3000,
    "{{ " + "-" * 30_000 + "1 }}",
    "{{ a" + ".b" * 20_000 + " }}",
    "{# " * 5000,
    "{% raw %}",
    "{{ raise_exception('x') }}",
    "{%- for m in messages -%}" * 400,
    "\x1b[2J<script>alert(1)</script>",
)
NAMES = (
    "\x1b[31mred\x1b[0m.safetensors",
    "<img src=x onerror=alert(1)>.json",
    "a`b|c.json",
    "::error::x.json",
    "x\ny.json",
    "\u202egnp.json",
    "-rf",
    "~~~.json",
    "@everyone.md",
    "…" * 60,
    "model-00001-of-99999.safetensors",
    "checkpoint-999999999999",
    "merged",
    "adapter_model.bin",
)
HUGE = (2**31, 2**32, 2**53, 2**63, 2**64, 10**30, -1, -(2**63), 0, 1)


def weird(rng: Random) -> Any:
    """Return a value that nobody expects."""
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: None,
        lambda: True,
        lambda: rng.choice(HUGE),
        lambda: 1e308,
        lambda: -0.0,
        lambda: float(rng.choice(("nan", "inf", "-inf"))),
        lambda: "",
        lambda: "\x1b]0;x\x07" * 9,
        lambda: "x" * rng.choice((100, 100_000)),
        lambda: "\ud800",
        lambda: "../../etc/passwd",
        lambda: "<img src=x onerror=alert(1)>",
        list,
        dict,
        lambda: [[]] * 50,
        lambda: nest(rng.choice((20, 900))),
        lambda: list(range(5000)),
        lambda: {"a": {"b": [None]}},
        lambda: [None, 1, "a", [], {}],
        lambda: {str(n): n for n in range(3000)},
        lambda: rng.choice(BOMBS),
        lambda: "(" * 40 + "a+" * 40 + ")" * 40,
        lambda: "(a+)+$",
        lambda: "0" * 5000,
        lambda: rng.random() * 10 ** rng.randint(-300, 300),
        lambda: rng.randint(-5, 40),
    )
    return rng.choice(kinds)()


def nest(depth: int) -> Any:
    """Return a list inside lists."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where every value inside a JSON value lies."""
    found = [here] if here else []
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        found += paths(inner, (*here, key))
    return found


def mutate_json(raw: bytes, rng: Random) -> bytes:
    """Change one to three places of a JSON text: values, keys, or the text itself."""
    try:
        return _mutate_value(json.loads(raw), rng)
    except (ValueError, RecursionError):
        return mutate_bytes(raw, rng)


def _mutate_value(value: Any, rng: Random) -> bytes:
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        where = paths(value)
        if not where:
            break
        place = rng.choice(where)
        holder = value
        for key in place[:-1]:
            holder = holder[key]
        way = rng.randrange(6)
        if way < 4:
            holder[place[-1]] = weird(rng)
        elif way == 4:
            del holder[place[-1]]
        elif isinstance(holder, dict):
            holder[str(weird(rng))[:200]] = holder.pop(place[-1])
    if rng.random() < 0.05:
        value = weird(rng)
    made = json.dumps(value, ensure_ascii=rng.random() < 0.9).encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:  # a key twice, a number that is none, a comment
        made = rng.choice(
            (
                made.replace(b"{", b'{"a": 1, "a": 2, ', 1),
                made.replace(b"1", b"0" * 400 + b"1", 1),
                made + b"//",
                b"\xef\xbb\xbf" + made,
                made.replace(b":", b":" + b"[" * 3000, 1),
                made.replace(b"1", b"9" * 5000, 1),
                made.decode("utf-8", "replace").encode("utf-16"),
            )
        )
    return made


def mutate_bytes(raw: bytes, rng: Random) -> bytes:
    """Flip, cut, repeat, insert."""
    made = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = rng.randrange(len(made) + 1)
        way = rng.randrange(7)
        if way == 0 and made:
            made[place % len(made)] ^= 1 << rng.randrange(8)
        elif way == 1 and made:
            made[place % len(made)] = rng.choice((0, 255, 127, 128, rng.randrange(256)))
        elif way == 2:
            del made[place:]
        elif way == 3:
            del made[place : place + rng.randrange(1, 64)]
        elif way == 4:
            made[place:place] = rng.randbytes(rng.randrange(1, 64))
        elif way == 5:
            made[place:place] = made[place : place + rng.randrange(1, 256)]
        else:
            made[place : place + 8] = rng.choice(HUGE).to_bytes(17, "little", signed=True)[:8]
    return bytes(made)


def mutate_safetensors(raw: bytes, rng: Random) -> bytes:
    """Change the header and keep the frame, or the frame alone."""
    if rng.random() < 0.25 or len(raw) < 8:
        return mutate_bytes(raw, rng)
    length = int.from_bytes(raw[:8], "little")
    header, data = raw[8 : 8 + length], raw[8 + length :]
    is_known = rng.random() < 0.6
    header = _mutate_entry(header, rng) if is_known else mutate_json(header, rng)
    size = len(header)
    if rng.random() < 0.1:
        size = rng.choice(
            (0, 1, max(0, size - 1), size + 1, 100_000_001, 2**32, 2**63, 2**64 - 1, 99_999_999)
        )
    return size.to_bytes(8, "little") + header + data


def _mutate_entry(header: bytes, rng: Random) -> bytes:
    """Change sizes, offsets, types or names of tensors as somebody would who knows the format."""
    try:
        entries = json.loads(header)
        name = rng.choice([key for key in entries if key != "__metadata__"])
        entry = entries[name]
        way = rng.randrange(8)
        if way == 0:
            entry["dtype"] = rng.choice(
                (
                    "F64",
                    "F16",
                    "F8_E4M3",
                    "F8_E8M0",
                    "F4",
                    "F6_E2M3",
                    "BOOL",
                    "I64",
                    "C64",
                    "U8",
                    "X",
                )
            )
        elif way == 1:
            entry["shape"][rng.randrange(len(entry["shape"]))] = rng.choice(HUGE)
        elif way == 2:
            entry["shape"] = rng.choice(
                ([], [0], [1] * 64, [1] * 99, [2**32, 2**32], [-1, -1], [1.0], ["1"], [True])
            )
        elif way == 3:
            entry["data_offsets"][rng.randrange(2)] = rng.choice((*HUGE, rng.randrange(500)))
        elif way == 4:
            other = rng.choice([key for key in entries if key != "__metadata__"])
            entry["data_offsets"], entries[other]["data_offsets"] = (
                entries[other]["data_offsets"],
                entry["data_offsets"],
            )
        elif way == 5:
            new = rng.choice(
                (
                    f"_orig_mod.{name}",
                    name.replace(".0.", ".999999999999."),
                    name * 30,
                    "",
                    "\ud800",
                    name.replace("weight", "lora_A.weight"),
                    rng.choice(NAMES),
                    name.replace("model", "module"),
                    f"base_model.model.{name}",
                    name.replace("0", "٣"),
                )
            )
            entries[new] = entries.pop(name)
        elif way == 6:
            entries["__metadata__"] = weird(rng)
        else:
            text = json.dumps(entries)
            return text.replace(json.dumps(name), json.dumps(rng.choice(list(entries))), 1).encode()
        return json.dumps(entries).encode("utf-8", "surrogatepass")
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return header


def mutate_template(raw: bytes, rng: Random) -> bytes:
    """Put a hostile template in place, or damage the one that is there."""
    if rng.random() < 0.5:
        return rng.choice(BOMBS).encode()
    if rng.random() < 0.5:
        place = rng.randrange(len(raw) + 1)
        return raw[:place] + rng.choice(BOMBS).encode() + raw[place:]
    return mutate_bytes(raw, rng)


def mutate_lines(raw: bytes, rng: Random) -> bytes:
    """Damage a line of JSON lines."""
    lines = raw.split(b"\n")
    place = rng.randrange(len(lines))
    lines[place] = mutate_json(lines[place] or b"{}", rng)
    return b"\n".join(lines)


def mutate_file(name: str, raw: bytes, rng: Random) -> bytes:
    """Damage one file as its kind invites."""
    if rng.random() < 0.15:
        return mutate_bytes(raw, rng)
    if name.endswith(".safetensors"):
        return mutate_safetensors(raw, rng)
    if name.endswith(".jinja"):
        return mutate_template(raw, rng)
    if name.endswith(".jsonl"):
        return mutate_lines(raw, rng)
    if name.endswith(".json"):
        return mutate_json(raw, rng)
    return mutate_bytes(raw, rng)


def mutate(files: Files, rng: Random) -> Files:
    """Return a damaged copy of a folder's files."""
    made = dict(files)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice(sorted(made))
        way = rng.random()
        if way < 0.9 or len(made) == 1:
            made[name] = mutate_file(name, made[name], rng)
        elif way < 0.93:
            del made[name]
        elif way < 0.96:
            made[name] = made[rng.choice(sorted(made))]
        else:
            new = rng.choice(NAMES)
            if "/" not in new and "\0" not in new:
                made[new[:80]] = made.pop(name)
    return made


def disturb(folder: Path, rng: Random) -> None:
    """Damage the folder itself: links, pipes, folders where files should be."""
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return
    path = folder / rng.choice(names)
    way = rng.randrange(8)
    if way == 0:
        (folder / "weights.safetensors").symlink_to("/etc/passwd")
    elif way == 1:
        path.unlink()
        path.symlink_to(path.name)
    elif way == 2:
        path.unlink()
        path.mkdir()
    elif way == 3:
        path.unlink()
        os.mkfifo(path)
    elif way == 4:
        path.unlink()
        path.symlink_to(rng.choice(("/dev/zero", "/dev/stdin", "/proc/self/mem", "..", "/etc")))
    elif way == 5:
        (folder / "checkpoint-1").symlink_to("..")
    elif way == 6:
        (folder / os.fsdecode(b"\xff\xfe.json")).write_bytes(b"{}")
    else:
        inner = folder / "checkpoint-5"
        inner.mkdir()
        (inner / "adapter_config.json").write_bytes(b"{}")


TARGETS = re.compile(r".*\.(safetensors|gguf|bin)")
"""Files that can be the subject by themselves."""
