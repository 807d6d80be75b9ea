"""List what a pickle would call, without calling it (`pickletools` reads opcodes, nothing runs).

A list of dangerous functions can always be walked around, so the list here is of harmless ones:
everything else that a file names is reported. What could not be followed to its end is too.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from harness.evidence.files.archives import BROKEN_ARCHIVE
from harness.evidence.source import CheckpointEvidence, provides
from harness.facts.checkpoint import Files, Pickled
from harness.registry import NotApplicable
from mudpuppy.files import open_regular

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
"""Endings of files that loaders unpickle."""
PICKLE_LIMIT_BYTES = 64_000_000
"""Longest pickle that is listed; the pickle of a torch file is small, tensors lie outside it."""
ALL_PICKLES_BYTES = 128_000_000
"""Bytes that are read of all pickles of a folder; an archive may unpack to a thousand times its
size."""
OPCODE_LIMIT = 1_000_000
"""Operations of all pickles of a folder after which they are given up, 1.5 s; an optimizer of a
thousand tensors has some 30,000."""
OPCODES = frozenset(one.code.encode("latin-1") for one in pickletools.opcodes)
"""First bytes that an unpickler takes."""
ZIP_MARK = b"PK\x03\x04"
"""By these bytes torch tells a zip archive from a bare pickle."""
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""What the first pickle of torch's old format holds."""
LEGACY_PICKLES = 5
"""Pickles of the old format: magic, version, system, object, storage keys; raw tensors follow."""
_REBUILD = (
    "tensor tensor_v2 tensor_v3 parameter parameter_with_state qtensor sparse_tensor "
    "nested_tensor meta_tensor_no_storage device_tensor_from_numpy device_tensor_from_cpu_tensor"
)
HARMLESS = re.compile(
    r"collections\.(OrderedDict|Counter|defaultdict|deque)"
    rf"|torch\._utils\._rebuild_({'|'.join(_REBUILD.split())})"
    r"|torch(\.cuda)?\.[A-Z][A-Za-z0-9]*Storage|torch\.storage\.(UntypedStorage|TypedStorage)"
    r"|torch\.(device|Size|Tensor|nn\.parameter\.Parameter)"
    r"|torch\.(float|bfloat|int|uint|complex|quint|qint|bool|half|double|long)[a-z0-9_]*"
    r"|torch\.serialization\._get_layout|torch\._tensor\._rebuild_from_type_v2"
    r"|numpy\.(ndarray|dtype|bool_|(float|int|uint|complex)\d+)"
    r"|numpy\.(core|_core)\.multiarray\.(_reconstruct|scalar)"
    r"|numpy\.dtypes\.[A-Z][A-Za-z0-9]*DType|_codecs\.encode"
    r"|(builtins|__builtin__)\.(set|frozenset|dict|list|tuple|bytearray|bytes|int|float|complex"
    r"|bool|str|slice|range|object)"
    r"|pathlib\.(Path|PosixPath|PurePosixPath|_local\.PosixPath)|datetime\.(datetime|timedelta)"
    r"|transformers\.trainer_utils\.[A-Z][A-Za-z]*(Strategy|Type|Options|Mode)"
    r"|transformers\.(training_args|training_args_seq2seq)\.(OptimizerNames|ParallelMode"
    r"|TrainingArguments|Seq2SeqTrainingArguments)"
    r"|transformers\.debug_utils\.DebugOption|transformers\.trainer_pt_utils\.AcceleratorConfig"
    r"|transformers\.integrations\.deepspeed\.(HfTrainerDeepSpeedConfig|HfDeepSpeedConfig)"
    r"|accelerate\.state\.PartialState|accelerate\.utils\.dataclasses\.[A-Z][A-Za-z]*(Type|Plugin)"
    r"|trl\.(trainer|experimental)(\.[a-z_]+)*\.[a-z0-9_]+_config\.[A-Z][A-Za-z0-9]*Config"
)
"""Names that torch, numpy, transformers, accelerate and TRL write into healthy training files.

`torch.storage._load_from_bytes` is left out on purpose: it unpickles what it is given."""

_MARK, _UNKNOWN = object(), object()


class _Cut(Exception):
    """The pickle cannot be listed further; the message says why."""


class PickleBudget:
    """What may still be read of the pickles of one folder."""

    def __init__(self) -> None:
        self.operations_left = OPCODE_LIMIT
        self.bytes_left = ALL_PICKLES_BYTES


class _Limited:
    """A stream of which no more than `PICKLE_LIMIT_BYTES` are read."""

    def __init__(self, handle: IO[bytes], budget: PickleBudget) -> None:
        self.handle = handle
        self.budget = budget
        self.limit = self.left = min(PICKLE_LIMIT_BYTES, budget.bytes_left)
        self.peeked = b""

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes."""
        start, self.peeked = self.peeked[:size], self.peeked[size:]
        if size - len(start) > self.left:
            raise self._cut()
        raw = start + self.handle.read(size - len(start))
        self._take(len(raw))
        return raw

    def readline(self) -> bytes:
        """Return the next line; one that fills the limit is no line of a pickle."""
        start, self.peeked = self.peeked, b""
        raw = start + self.handle.readline(self.left + 1)
        self._take(len(raw))
        if self.left < 0:
            raise self._cut()
        return raw

    def _take(self, count: int) -> None:
        self.left -= count
        self.budget.bytes_left -= count

    def _cut(self) -> _Cut:
        if self.limit < PICKLE_LIMIT_BYTES:
            return _Cut(f"more than {ALL_PICKLES_BYTES:,} bytes of pickles in one folder")
        return _Cut(f"longer than {PICKLE_LIMIT_BYTES:,} bytes, of which the rest is not known")

    def at_end(self) -> bool:
        """Whether nothing is left."""
        self.peeked = self.peeked or self.handle.read(1)
        return not self.peeked


class PickleReader:
    """Follows the pickles of a file and keeps the names that they look up."""

    def __init__(self, budget: PickleBudget | None = None) -> None:
        self.names: dict[str, None] = {}
        self.problem = ""
        self._budget = budget or PickleBudget()

    def read(self, handle: IO[bytes]) -> None:
        """List every pickle to the end of a stream; names found before an error are kept."""
        stream, count, limit = _Limited(handle, self._budget), 0, 0
        try:
            while not stream.at_end() and (not limit or count < limit):
                first = self._read_one(stream)
                count += 1
                if count == 1 and first == LEGACY_MAGIC:
                    limit = LEGACY_PICKLES
            if count < limit:
                raise _Cut(f"{count} of the {limit} pickles of an old torch file")
        except _Cut as cut:
            self.note(str(cut))
        except (ValueError, IndexError, KeyError, OverflowError, UnicodeError) as problem:
            self.note(f"pickle {count + 1} breaks off: {str(problem)[:120]}")

    def note(self, problem: str) -> None:
        """Keep the first problem."""
        self.problem = self.problem or problem

    def _read_one(self, stream: _Limited) -> Any:
        """Follow one pickle; return its result when that is a number or a text."""
        stack: list[Any] = []
        memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], stream)):
            self._budget.operations_left -= 1
            if self._budget.operations_left < 0:
                said = f"more than {OPCODE_LIMIT:,} operations in the pickles of one folder"
                raise _Cut(f"{said}, of which the rest is not known")
            if opcode.name == "STOP":
                return stack[-1]
            self._step(opcode, argument, stack, memo)
        raise ValueError("no end")

    def _step(
        self,
        opcode: pickletools.OpcodeInfo,
        argument: Any,
        stack: list[Any],
        memo: dict[int, Any],
    ) -> None:
        """Do to the stack and the memo what the unpickler does, with texts and numbers alone."""
        name = opcode.name
        if name in ("GLOBAL", "INST"):
            self.names[str(argument).replace(" ", ".", 1)] = None
        elif name == "STACK_GLOBAL":
            parts = stack[-2:]
            known = len(parts) == 2 and all(isinstance(part, str) for part in parts)
            self.names[".".join(parts) if known else "a name that is computed"] = None
        elif name.startswith("EXT"):
            self.names[f"number {argument} of the extension registry"] = None
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            _move(opcode, argument, stack)


def _move(opcode: pickletools.OpcodeInfo, argument: Any, stack: list[Any]) -> None:
    """Take from the stack and put on it what an ordinary operation takes and puts."""
    before, after = opcode.stack_before, opcode.stack_after
    taken = len(before)
    if pickletools.markobject in before or (opcode.name == "POP" and stack[-1] is _MARK):
        place = max(number for number, item in enumerate(stack) if item is _MARK)
        del stack[place:]
        taken = before.index(pickletools.markobject) if pickletools.markobject in before else 0
    if taken > len(stack):
        raise ValueError("it takes more than it has")
    del stack[len(stack) - taken :]
    for kind in after:
        plain = isinstance(argument, (str, int)) and len(after) == 1 and not before
        stack.append(_MARK if kind is pickletools.markobject else argument if plain else _UNKNOWN)


def list_names(path: Path, budget: PickleBudget | None = None) -> tuple[tuple[str, ...], str]:
    """Return every name that the pickles of a file look up, and what could not be followed.

    A file that starts with bytes that no unpickler takes holds no pickle: no names, no problem.
    """
    reader = PickleReader(budget)
    try:
        is_archive = zipfile.is_zipfile(path)
        with open_regular(path) as handle:
            head = handle.read(len(ZIP_MARK))
            handle.seek(0)
            if head != ZIP_MARK and head[:1] in OPCODES:
                reader.read(handle)
        if is_archive:
            _read_archive(path, reader)
        elif head == ZIP_MARK:
            reader.note("a zip archive that cannot be opened")
    except BROKEN_ARCHIVE as problem:
        reader.note(f"cannot be read: {str(problem)[:120]}")
    return tuple(reader.names), reader.problem


def _read_archive(path: Path, reader: PickleReader) -> None:
    """List every pickle of a torch archive; torch finds its members without regard to case."""
    with zipfile.ZipFile(path) as archive:
        members = [one for one in archive.infolist() if one.filename.lower().endswith(".pkl")]
        for member in members:
            with archive.open(member) as handle:
                reader.read(handle)
    if not members:
        reader.note("a zip archive without a pickle of torch")


def is_harmless(name: str) -> bool:
    """Whether a name is one that ordinary training files hold."""
    return HARMLESS.fullmatch(name) is not None


@provides("pickles")
def list_pickles(evidence: CheckpointEvidence) -> dict[str, Pickled]:
    """Return what every pickled file of the folder names beyond the harmless."""
    files: Files = evidence.get("files")
    found = dict(_describe(evidence.folder, files))
    if not found:
        raise NotApplicable("the folder holds no pickled file")
    return found


def _describe(folder: Path, files: Files) -> Iterator[tuple[str, Pickled]]:
    budget = PickleBudget()
    for name in files.names:
        if name.lower().endswith(PICKLE_SUFFIXES):
            names, problem = list_names(folder / name, budget)
            calls = tuple(call for call in names if not is_harmless(call))
            yield name, Pickled(calls=calls, problem=problem)
