"""Files of the checkpoint are links that lead out of its folder.

What it does: follows every link to a file. Those inside the folder, and those into the `blobs` of a
hub's cache, are ordinary. Others are read where they lead to an ordinary file, and named here;
links to devices and to files of the system (`/proc`, `/sys`, `/dev`) are not read.

Why it is bad: often it is meant, to save room. But what is examined is then not what a copy of the
folder holds, it changes when the other place does (FM45), and in a folder from a stranger a link
may point at a file that is none of their business. A repaired copy (`--fix`) leaves such links out.

Example: `model.safetensors` that leads to `/data/other-run/model.safetensors`.

What to do: if the links are yours, nothing; `cp -rL FOLDER NEW` makes a folder that stands alone.
"""

from __future__ import annotations

from harness.facts.files import Link
from harness.findings import Evidence, Finding, Severity
from harness.registry import probe


@probe("MPD116", modes=["FM45"], severity=Severity.NOTE)
def check(links: tuple[Link, ...]) -> Finding | str:
    """Name the links that lead out of the folder."""
    if not links:
        return "no link leads out of the folder"
    refused = [link for link in links if not link.is_read]
    first = (refused or links)[0]
    more = f" (and {len(links) - 1} more)" if len(links) > 1 else ""
    what = "is not read: it leads to" if refused else "is a link out of the folder, to"
    return Finding(
        message=f"{first.name} {what} {first.target}{more}",
        evidence=tuple(
            Evidence(
                what="link out of the folder" if link.is_read else "link that is not read",
                file=link.name,
                found=link.target,
            )
            for link in links
        ),
        cause="linked to save room, or made to have another file read",
        remedy="cp -rL FOLDER NEW makes a folder without links, if you know where they lead",
    )
