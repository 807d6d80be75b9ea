"""The output of a run is read to its end, however long it is."""

from harness.cell_folder import LOG_FILE
from harness.evidence.matrix.output import read_output
from harness.evidence.source import CheckpointEvidence, Options

LETHAL = "some weights are newly initialized"


def test_a_lethal_line_behind_many_others_is_found(tmp_path):
    with (tmp_path / LOG_FILE).open("w") as handle:
        for _ in range(18):
            handle.write("x" * (1 << 20) + "\r")
        handle.write(LETHAL + "\n")

    found = read_output(CheckpointEvidence(tmp_path, Options(run_folder=tmp_path)))

    assert [LETHAL] == [one.line for one in found.lethal]
