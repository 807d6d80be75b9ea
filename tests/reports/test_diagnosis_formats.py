"""The doctor's formats for programs and pages: valid by their schemas, and safe from any name."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree as ET

import jsonschema
import pytest
import xmlschema
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from harness.findings import Severity, Status, Verdict
from harness.registry import load_probes
from reports.diagnosis_console import write_console
from reports.diagnosis_github import write_github
from reports.diagnosis_html import write_html
from reports.diagnosis_json import write_json, write_schema
from reports.diagnosis_junit import write_junit
from reports.diagnosis_markdown import LIMIT, write_markdown
from reports.diagnosis_sarif import write_sarif
from tests.reports.diagnoses import HOSTILE, everything, finding

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RULES = load_probes()
NASTY = st.text(
    st.sampled_from("ab:|`<>&\"'*_[]()#@~\\!-+.1 {}%\n\r\t\x00\x1b\x85\u202e\u2028\ud800é"),
    min_size=1,
    max_size=40,
)
few = settings(max_examples=15)


# --- JSON


def test_the_schema_in_the_documentation_is_that_of_the_code():
    held = (ROOT / "docs/diagnosis.schema.json").read_text(encoding="utf-8")
    assert held == write_schema(), "run: mudpuppy-doctor schema > docs/diagnosis.schema.json"


@few
@given(NASTY)
def test_json_keeps_to_its_schema(text):
    value = json.loads(write_json(everything(text)), parse_constant=pytest.fail)
    jsonschema.validate(value, json.loads(write_schema()))
    assert value["path"] == f"out/{text}"  # programs get what is there


def test_json_hides_nothing():
    value = json.loads(write_json(everything()))
    by_code = {one["code"]: one for one in value["probes"]}
    assert by_code["MPD606"]["caused_by"] == "MPD301"
    assert by_code["MPD105"]["accepted"]
    assert by_code["MPD106"]["is_known"]
    assert value["fixed"][0]["code"] == "MPD302"
    assert len(value["probes"]) == 11


def test_a_schema_of_json_refuses_what_is_not_in_it():
    value = json.loads(write_json(everything()))
    for broken in ({**value, "more": 1}, {**value, "schema_version": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, json.loads(write_schema()))


# --- JUnit


JUNIT = xmlschema.XMLSchema(HERE / "junit.xsd")


@few
@given(NASTY)
def test_junit_is_valid_whatever_the_names(text):
    JUNIT.validate(write_junit(everything(text)))


def test_junit_has_an_ending_for_each_probe():
    root = ET.fromstring(write_junit(everything()))
    endings = {
        (case.get("name"), suite.get("name")): (case[0].tag if len(case) else None)
        for suite in root
        for case in suite.findall("testcase")
    }
    at = "out/model.q_proj.weight"
    assert endings[("MPD301 weights-nonfinite", at)] == "failure"
    assert endings[("MPD801 vocabulary-mismatch", f"{at}/model.q_proj.weight")] == "failure"
    assert endings[("MPD604 accuracy-collapse", at)] == "error"
    assert endings[("MPD401 merge-without-effect", at)] == "skipped"
    assert endings[("MPD105 shards-stale", at)] == "skipped"  # accepted
    assert endings[("MPD106 weights-pickled", at)] == "skipped"  # known
    assert endings[("MPD205 adapter-config-disagrees", at)] == "system-out"  # a note
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("12", "4", "1")
    case = root.find(".//testcase[@name='MPD606 logits-nonfinite']/failure")
    assert "explained by: MPD301" in (case.text or "")


def test_junit_fails_on_what_the_exit_code_fails_on():
    lenient = replace(everything(), fail_on=Severity.CRITICAL)
    assert ET.fromstring(write_junit(lenient)).get("failures") == "2"
    assert ET.fromstring(write_junit(replace(lenient, fail_on=None))).get("failures") == "0"


def test_what_could_not_be_determined_is_an_error_in_junit():
    nothing = replace(everything(), probes=(), verdict=Verdict.UNKNOWN, why="no weights")
    root = ET.fromstring(write_junit(nothing))
    assert root.get("errors") == "1"


# --- SARIF

SARIF = json.loads((HERE / "sarif_part.schema.json").read_text(encoding="utf-8"))


@few
@given(NASTY)
def test_sarif_is_valid_whatever_the_names(text):
    value = json.loads(write_sarif(everything(text), RULES))
    jsonschema.validate(value, SARIF)
    for result in value["runs"][0]["results"]:
        for place in result.get("locations", []):
            uri = place["physicalLocation"]["artifactLocation"]["uri"]
            assert not uri.startswith("/")
            assert "\ud800" not in uri


def test_sarif_names_every_rule_and_every_ending():
    (run,) = json.loads(write_sarif(everything(), RULES))["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [rule.code for rule in RULES]
    assert all("What to do" in rule["help"]["text"] for rule in rules)
    results = {one["ruleId"]: one for one in reversed(run["results"])}
    for one in run["results"]:
        if "ruleIndex" in one:
            assert rules[one["ruleIndex"]]["id"] == one["ruleId"]
    kinds = {code: (one["kind"], one["level"]) for code, one in results.items()}
    assert kinds["MPD101"] == ("pass", "none")
    assert kinds["MPD301"] == ("fail", "error")
    assert kinds["MPD205"] == ("fail", "note")
    assert kinds["MPD401"] == ("open", "none")
    assert kinds["MPD201"] == ("notApplicable", "none")
    assert results["MPD105"]["suppressions"][0]["kind"] == "external"
    assert results["MPD106"]["baselineState"] == "unchanged"
    assert results["MPD301"]["baselineState"] == "new"
    assert results["MPD302"]["baselineState"] == "absent"
    assert results["MPD606"]["properties"]["causedBy"] == "MPD301"
    assert "MPD604" not in results
    (crashed,) = run["invocations"][0]["toolExecutionNotifications"]
    assert crashed["associatedRule"] == {"id": "MPD604"}
    assert run["invocations"][0]["exitCode"] == 1


def test_places_in_sarif_are_relative_to_the_examined_path():
    (run,) = json.loads(write_sarif(everything("a b"), RULES))["runs"]
    uris = [
        place["physicalLocation"]["artifactLocation"]
        for one in run["results"]
        if one["ruleId"] == "MPD801"
        for place in one["locations"]
    ]
    assert [unquote(one["uri"]) for one in uris] == ["a b.st", "a b/a b.st"]
    assert {one["uriBaseId"] for one in uris} == set(run["originalUriBaseIds"])


def test_without_a_baseline_sarif_says_nothing_of_one():
    (run,) = json.loads(write_sarif(everything(known=False), RULES))["runs"]
    assert not any("baselineState" in one for one in run["results"])


# --- HTML


class Page(HTMLParser):
    """The tags of a page with their attributes, and the text of its style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.inside = ""
        self.held: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))
        self.inside = tag

    def handle_data(self, data):
        if self.inside in ("style", "script"):
            self.held[self.inside] = self.held.get(self.inside, "") + data

    def handle_endtag(self, tag):
        self.inside = ""


def test_the_page_needs_nothing_and_allows_nothing():
    page = Page(write_html(everything(HOSTILE), RULES))
    names = {name for _, attributes in page.tags for name, _ in attributes}
    assert not {name for name in names if name.startswith("on") or name in ("src", "href", "style")}
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "form", "base"}
    (policy,) = [
        dict(attributes)["content"]
        for tag, attributes in page.tags
        if tag == "meta" and ("http-equiv", "Content-Security-Policy") in attributes
    ]
    assert policy.startswith("default-src 'none'")
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.held[tag].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "url(" not in page.held["style"]
    assert "@import" not in page.held["style"]


@few
@given(NASTY)
def test_no_name_adds_a_tag_to_the_page(text):
    usual = Page(write_html(everything("x"), RULES)).tags
    assert Page(write_html(everything(text), RULES)).tags == usual


def test_the_page_shows_everything_that_the_terminal_shows():
    text = write_html(everything(), RULES)
    for words in ("MPD301", "MPD606", "Accepted", "Known from the baseline", "Gone since"):
        assert words in text
    assert "Weights that are NaN or infinite." in text  # what the code means, on the spot
    assert "could not finish" in text


# --- Markdown


def shape(text: str) -> list[str]:
    """Return what a renderer makes of Markdown, texts left out."""
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)
    inner = [[child.type for child in token.children or []] for token in tokens]
    kinds = [token.type for token in tokens]
    plain = {"text", "text_special", "softbreak"}
    return [
        str((kind, [one for one in c if one not in plain]))
        for kind, c in zip(kinds, inner, strict=True)
    ]


@few
@given(NASTY)
def test_no_name_changes_the_shape_of_the_markdown(text):
    def cut(diagnosis):
        page = write_markdown(diagnosis)
        return [line for line in shape(page) if "html_inline" not in line]

    if not re.sub(r"\s", "", text):
        return  # an empty line ends a list; names of nothing but spaces have no place in one
    assert "html_block" not in str(shape(write_markdown(everything(text)))).replace(
        "('html_block', [])", ""
    )
    assert cut(everything(text)) == cut(everything("x"))


@pytest.mark.parametrize("text", ["~~~", "```", "# x", "- x", "1. x", "> x", "@team", "a|b", "<b>"])
def test_names_that_begin_like_markdown_are_words(text):
    page = write_markdown(everything(text))
    assert shape(page) == shape(write_markdown(everything("x")))
    assert not re.search(r"@\w", re.sub(r"`[^`]*`", "", page))  # code calls nobody


def test_markdown_fits_a_comment_and_says_what_is_left_out():
    found = [
        finding(f"MPD{100 + n}", "shards-stale", Severity.HIGH, f"{n} " + "x" * 300)
        for n in range(200)
    ]
    page = write_markdown(replace(everything(), probes=tuple(found)))
    assert len(page) <= LIMIT
    assert "more parts are left out here" in page
    assert page.rstrip().endswith("exit code 1*")


# --- GitHub


@few
@example("##[set-env name=x]y")
@example("a\n::error::x")
@given(NASTY)
def test_github_gets_its_commands_and_no_others(text):
    lines = write_github(everything(text)).splitlines()
    commands = [line for line in lines if line.startswith("::")]
    assert [line.split("::")[1].split(" ")[0] for line in commands] == [
        "error",
        "error",
        "notice",
        "error",
    ]
    assert "(follows from " in commands[-1]
    assert len(lines) == 5
    assert "##[" not in "".join(lines)


# --- all of them


@pytest.mark.parametrize(
    "write",
    [
        write_console,
        write_markdown,
        write_json,
        write_junit,
        write_github,
        lambda one: write_sarif(one, RULES),
        lambda one: write_html(one, RULES),
    ],
)
def test_no_report_holds_what_repaints_a_terminal(write):
    text = write(everything(HOSTILE))
    assert "\x1b" not in text
    assert "\u202e" not in text
    text.encode("utf-8")


def test_endings_are_all_shown_in_the_console():
    diagnosis = everything()
    text = write_console(diagnosis, width=100)
    assert text.index("critical: MPD301") < text.index("high: MPD801") < text.index("note: MPD205")
    assert text.index("explains MPD606") < text.index("high: MPD801")
    assert "also in  model.q_proj.weight" in text
    assert text.count("MPD801 vocabulary-mismatch (") == 1
    assert "(accepted: model.q_proj.weight)" in text
    assert "known from the baseline" in text
    assert "gone since the baseline" in text
    assert diagnosis.exit_code == 1
    assert {one.status for one in diagnosis.probes} == set(Status)


@pytest.mark.parametrize("width", [40, 60, 100, 160, 200])
def test_no_line_of_the_console_is_longer_than_the_terminal(width):
    for line in write_console(everything("word"), width=width).splitlines():
        assert len(line) <= width


# --- what is cut, escaped and set apart


def test_a_very_long_name_is_cut_everywhere_a_person_reads():
    for write in (write_console, write_markdown, write_github):
        assert "y" * 3000 not in write(everything("y" * 50_000))


def test_percent_signs_cannot_be_taken_for_escapes_of_a_command():
    found = write_github(everything("100%0A::error::x"))

    assert "100%250A" in found


def test_sarif_names_no_more_places_than_a_reader_shows():
    diagnosis = everything()
    pieces = tuple(
        replace(diagnosis.findings[0].evidence[0], tensor=f"layer.{n}", file="a.safetensors")
        for n in range(40)
    )
    probes = tuple(
        replace(one, evidence=pieces) if one.status is Status.FAILED else one
        for one in diagnosis.probes
    )
    value = json.loads(write_sarif(replace(diagnosis, probes=probes), RULES))

    assert max(len(one.get("locations", [])) for one in value["runs"][0]["results"]) == 10


def test_a_page_sets_accepted_and_known_findings_apart():
    page = write_html(everything(), RULES)
    rows = [row for row in page.split("<tr")[1:] if "MPD105" in row or "MPD106" in row]

    assert any("accepted" in row for row in rows if "MPD105" in row)
    assert any("known" in row for row in rows if "MPD106" in row)


@pytest.mark.parametrize(
    "write", [write_console, write_markdown, lambda diagnosis: write_html(diagnosis, RULES)]
)
def test_the_scores_of_who_was_asked_are_in_every_form_that_people_read(write):
    said = write(everything("out/merged"))
    assert said.count("accuracy 0.95 (base 0.25)") == 1
    assert "Answers" in said or write is write_console
    silent = replace(everything(), facts={"subjects": [{"subject": "."}]})
    assert "accuracy 0.95" not in write(silent)
    assert "Answers" not in write(silent)
