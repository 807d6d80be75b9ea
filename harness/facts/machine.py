"""What evidence says of a machine and of installed, or recorded, versions of packages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class JudgedTrap:
    """One trap of `mud-puppy env`, and what it says of the machine."""

    code: str
    """Its code, such as `MP-T05`."""
    name: str
    """Its name, such as `integrated-gpu`."""
    why: str
    """What it leads to."""
    sources: tuple[str, ...]
    """Where that is known from."""
    severity: str = ""
    """`blocks`, `warns` or `note`; empty where the machine is not in it."""
    what: str = ""
    """What was found."""
    do: str = ""
    """What to type."""


@dataclass(frozen=True, kw_only=True)
class KnownDefect:
    """An entry of the table of versions with defects."""

    name: str
    """Its name, such as `torch-load-runs-code`."""
    package: str
    """The package."""
    affected: str
    """Versions that have the defect, such as `<2.6`."""
    severity: str
    """critical, high, medium or note."""
    what: str
    """What goes wrong, with upstream's own words where it prints some."""
    do: str
    """What to type."""
    sources: tuple[str, ...]
    """Where that is known from."""
    modes: tuple[str, ...] = ()
    """Failure modes of the catalogue."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version of a package, held against the table."""

    package: str
    """The package."""
    version: str
    """Its version, as it is written."""
    found_in: str
    """`installed`, or the file that records it."""
    defects: tuple[KnownDefect, ...]
    """Entries of the table that apply, worst first."""


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """What one installed package asks of others."""

    package: str
    """The package."""
    version: str
    """Its version."""
    unmet: tuple[str, ...]
    """What it asks for and is not so, each as `numpy<2, installed 2.4.6`."""


@dataclass(frozen=True, kw_only=True)
class Wheels:
    """For what the installed wheels were built."""

    builds: tuple[tuple[str, str], ...]
    """Package and the tag behind `+` of its version, such as (`torch`, `rocm7.2`); empty tags are
    those of wheels that name none."""
    tritons: tuple[str, ...]
    """Packages that bring a module `triton`."""
