"""A served model is asked through its server, whatever that server does."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from functools import partial

import pytest
from safetensors.torch import load_file, save_file

from harness.doctor import Judging, diagnose
from harness.doctor.served import diagnose_served, examine_served
from harness.evidence.behaviour.endpoint import PATIENT_TOKENS
from harness.evidence.behaviour.reference_texts import PROMPTS
from harness.findings import Status, Verdict
from harness.hub.visit import Places
from harness.registry import Missing
from reports.commands.doctor import main
from reports.diagnosis_console import write_console
from tests.harness.checkpoints import save_base
from tests.mudpuppy.asking.servers import (
    Answer,
    busy,
    raw,
    reply,
    says,
    serve,
    stream,
    strict,
    vllm,
)

FINE = "The sky is blue because air scatters blue light more than red light."


def found(answer: Answer, control: Answer | None = None, **options: object) -> set[str]:
    with serve(answer) as server:
        if control is None:
            diagnosis = diagnose_served(server.url, Judging(**options))
        else:
            with serve(control) as other:
                diagnosis = diagnose_served(server.url, Judging(**options), base_url=other.url)
    return {result.name for result in diagnosis.findings}


@pytest.mark.parametrize(
    "answer",
    [
        says(FINE),
        vllm(FINE),
        strict(FINE, "logprobs", "seed"),
        strict(FINE, "max_tokens"),
        stream(FINE[:20], FINE[20:]),
        busy(2, says(FINE)),
        busy(2, says(FINE), status=429),
    ],
    ids=["plain", "vllm", "strict", "newer", "streams", "loading", "busy"],
)
def test_a_healthy_model_is_healthy_behind_every_server(answer):
    with serve(answer) as server:
        diagnosis = diagnose_served(server.url)
    assert diagnosis.verdict is Verdict.HEALTHY, diagnosis.why
    assert diagnosis.probes


def test_what_a_server_refuses_is_not_asked_again():
    with serve(strict(FINE, "logprobs", "seed")) as server:
        diagnose_served(server.url)
    assert sum("logprobs" in body for body in server.asked) == 1
    assert len(server.asked) == len(PROMPTS) + 2


def test_empty_answers_are_a_flood():
    assert found(says("", tokens=1)) == {"eos-flood"}
    assert found(says(None, tokens=0)) == {"eos-flood"}


def test_a_thought_without_an_answer_is_no_empty_answer():
    def think(handler, body):
        value = reply(None, finish="length")
        value["choices"][0]["message"]["reasoning_content"] = "The user asks of the sky, so"
        handler.send(200, value)

    assert found(think) == set()


def test_exclamation_marks_are_token_zero():
    assert found(says("!" * 48, finish="length")) == {"one-token-for-ever"}


def test_an_endless_model_is_held_against_its_control():
    endless = "word after word of a tale, and no two parts of it are quite alike in the end"
    assert found(says(endless, finish="length"), says(FINE)) == {"never-stops"}
    assert found(says(endless, finish="length")) == {"never-stops"}


def test_long_answers_that_end_are_no_fault():
    def answer(handler, body):
        is_long = body["max_tokens"] >= PATIENT_TOKENS
        handler.send(200, reply("a long tale of many parts", "stop" if is_long else "length"))

    assert found(answer, says(FINE)) == set()
    assert found(answer) == set()


def test_half_of_the_answers_unfinished_are_no_fault_without_a_control():
    def answer(handler, body):
        is_open = PROMPTS.index(body["messages"][0]["content"]) % 2
        handler.send(200, reply("a long tale of many parts", "length" if is_open else "stop"))

    assert found(answer) == set()


def test_a_thought_that_is_cut_is_no_unfinished_answer():
    assert found(says("<think>So the user asks of the sky, and", finish="length")) == set()


def test_markers_in_the_text_are_a_stop_token_that_nobody_knows():
    assert found(says(FINE + "<|im_end|>\n<|im_start|>user")) == {"stop-token-shown"}


def test_a_loop_is_held_against_the_control():
    loop = "so the river " * 9
    assert "repetition-loop" in found(says(loop), says(FINE))
    assert found(says(loop)) == {"repetition-loop"}
    with serve(says(loop)) as server:
        diagnosis = diagnose_served(server.url)
    assert not any("sampled" in one.what for one in diagnosis.findings[0].evidence)
    assert "served model model" in write_console(diagnosis)
    assert found(says("the pond " * 40, finish="length")) == {"repetition-loop", "never-stops"}


def test_some_loops_are_no_fault_without_a_control():
    def answer(handler, body):
        is_first = body["messages"][0]["content"] in PROMPTS[:4]
        handler.send(200, reply("so the river " * 9 if is_first else FINE))

    assert found(answer) == set()


def test_without_a_control_it_is_said_how_to_name_one():
    with serve(says("so the river " * 9)) as server:
        diagnosis = diagnose_served(server.url, Judging(select=["language-drift"]))
    assert "--endpoint-base URL or --base-model NAME" in diagnosis.probes[0].reason
    assert "--base PATH" not in diagnosis.probes[0].reason


def test_a_quiz_is_judged_against_the_control(tmp_path):
    quiz = tmp_path / "quiz.jsonl"
    lines = [
        {"id": str(i), "prompt": f"Q{i}?", "answer": FINE, "topic": "t", "kind": "fact"}
        for i in range(20)
    ]
    quiz.write_text("\n".join(map(json.dumps, lines)))
    assert found(says("no idea at all, friend"), says(FINE), quiz=quiz) == {"accuracy-collapse"}
    assert found(says(FINE), says(FINE), quiz=quiz) == set()


def write_quiz(folder):
    quiz = folder / "quiz.jsonl"
    lines = [
        {"id": str(i), "prompt": f"Q{i}?", "answer": FINE, "topic": "t", "kind": "fact"}
        for i in range(20)
    ]
    quiz.write_text("\n".join(map(json.dumps, lines)))
    return str(quiz)


def test_wrong_answers_without_a_control_are_not_healthy(tmp_path, capsys):
    with serve(says("No idea, friend.")) as server:
        assert main(["--endpoint", server.url, "--quiz", write_quiz(tmp_path)]) == 3
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("UNKNOWN")
    assert "--quiz could not be judged: nothing to compare 0 of 20 right with" in said
    assert "--endpoint-base URL or --base-model NAME" in said
    assert "accuracy 0.00, 20 of 20 answers end" in said


def test_right_answers_need_no_control(tmp_path, capsys):
    words = ["--quiz", write_quiz(tmp_path)]
    with serve(says(FINE)) as server:
        assert main(["--endpoint", server.url, *words]) == 0
        assert "accuracy 1.00, 20 of 20 answers end" in " ".join(capsys.readouterr().out.split())
        assert main(["--endpoint", server.url, "--endpoint-base", server.url, *words]) == 0
    said = "accuracy 1.00 (base 1.00), 20 of 20 answers end (base 20 of 20)"
    assert said in " ".join(capsys.readouterr().out.split())


def test_without_a_quiz_nothing_has_to_be_compared():
    with serve(says("No idea, friend.")) as server:
        assert diagnose_served(server.url).verdict is Verdict.HEALTHY


def some_fail(handler, body):
    handler.server.count += 1
    if handler.server.count % 2:
        handler.send(200, reply(FINE))
    else:
        handler.send(418, {"error": {"message": "probability tensor contains inf"}})


def test_prompts_without_an_answer_are_found_and_the_others_judged():
    with serve(some_fail) as server:
        diagnosis = diagnose_served(server.url)
    assert {result.name for result in diagnosis.findings} == {"server-answers-fail"}
    assert "4 of 8 prompts have no answer: status 418: probability" in diagnosis.findings[0].message
    flood = next(result for result in diagnosis.probes if result.name == "eos-flood")
    assert flood.message == "0 of 4 answers are empty"


def test_a_server_that_answers_nothing_leaves_the_verdict_open():
    with serve(raw(b"nonsense")) as server:
        diagnosis = diagnose_served(server.url)
    assert diagnosis.verdict is Verdict.UNKNOWN
    assert all(result.status is Status.CRASHED for result in diagnosis.probes)


def test_the_time_limit_holds_for_all_questions():
    def slow(handler, body):
        time.sleep(0.2)
        handler.send(200, reply(FINE))

    with serve(slow) as server:
        diagnosis = diagnose_served(server.url, Judging(time_limit_s=0.7))
    assert {result.name for result in diagnosis.findings} == {"server-answers-fail"}
    assert 1 <= len(server.asked) < len(PROMPTS)


def test_the_command_says_that_a_server_that_is_not_there_could_not_be_checked(capsys):
    assert main(["--endpoint", "http://127.0.0.1:9"]) == 3
    assert "is the server running?" in capsys.readouterr().err


def test_a_folder_is_no_control_of_a_server_alone(tmp_path, capsys):
    with serve(says(FINE)) as server:
        assert main(["--endpoint", server.url, "--base", str(tmp_path)]) == 2
        assert not server.asked
    assert "--endpoint-base URL or --base-model NAME" in capsys.readouterr().err


def test_the_command_asks_a_server_without_a_path(capsys):
    with serve(says("", tokens=1)) as server:
        assert main(["--endpoint", server.url, "--format", "json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["verdict"] == "sick"
    assert report["path"] == server.url
    assert main(["--endpoint", "nonsense"]) == 2
    assert "not an http address" in capsys.readouterr().err


def test_the_command_adds_the_server_to_the_files(tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    with serve(says("", tokens=1)) as server:
        main([str(tmp_path), "--endpoint", server.url, "--format", "json"])
    report = json.loads(capsys.readouterr().out)
    subjects = {one["subject"] for one in report["facts"]["subjects"]}
    assert subjects == {".", "endpoint"}
    assert {p["subject"] for p in report["probes"] if p["code"] == "MPD601"} == {".", "endpoint"}


def examine(tmp_path, capsys, server, *words):
    code = main([*words, "--endpoint", server.url, "--format", "json"])
    return code, json.loads(capsys.readouterr().out)


def test_files_and_server_are_judged_together_and_once(tmp_path, capsys):
    folder = save_base(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"")
    project = tmp_path / "mudpuppy-doctor.toml"
    project.write_text('[[accept]]\nprobe = "eos-flood"\nreason = "known"\n')
    with serve(says("", tokens=1)) as server:
        code, report = examine(tmp_path, capsys, server, str(folder), "--config", str(project))
    assert code == 1
    flood = [p for p in report["probes"] if p["name"] == "eos-flood" and p["status"] == "failed"]
    assert [p["accepted"] for p in flood] == ["known"]
    assert report["remarks"] == []


def test_pieces_of_evidence_are_counted_once(tmp_path, capsys):
    folder = save_base(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    spoilt = {name: value * float("nan") for name, value in tensors.items()}
    save_file(spoilt, folder / "model.safetensors", {"format": "pt"})
    main([str(folder), "--format", "json"])
    alone = json.loads(capsys.readouterr().out)
    with serve(says(FINE)) as server:
        _, both = examine(tmp_path, capsys, server, str(folder))
    ours = {"MPD301": "."}.items()
    of_files, of_both = (
        [p["evidence"] for p in one["probes"] if (p["code"], p["subject"]) in ours]
        for one in (alone, both)
    )
    assert len(of_files[0]) > 5
    assert of_both == of_files


def test_what_the_hub_did_not_give_is_told_beside_a_server_too(tmp_path, monkeypatch):
    folder = save_base(tmp_path / "model")
    fact = {"revision": "a" * 40, "not_fetched": ["big.bin"]}

    @contextmanager
    def lay_out(*words, progress):
        yield Places(paths=(folder, None, None), facts={"hf://org/name": fact})

    monkeypatch.setattr("harness.doctor.visit.at_hand", lay_out)
    with serve(says(FINE)) as server:
        diagnosis = diagnose("hf://org/name", Judging(beside=partial(examine_served, server.url)))
    assert diagnosis.facts["hub"] == {"hf://org/name": fact}
    assert "big.bin" in diagnosis.remarks[0]


def test_a_server_that_could_not_be_asked_is_not_healthy_beside_healthy_files(
    tmp_path, monkeypatch
):
    def refuse(job, say):
        raise Missing("the voice profile cannot be used")

    monkeypatch.setattr("harness.doctor.served.ask_served", refuse)
    folder = save_base(tmp_path / "model")
    assert diagnose(folder).verdict is Verdict.HEALTHY
    beside = partial(examine_served, "http://127.0.0.1:9")
    diagnosis = diagnose(folder, Judging(beside=beside))
    assert diagnosis.verdict is Verdict.UNKNOWN
    assert diagnosis.exit_code == 3
    assert "--endpoint could not ask it: the voice profile" in diagnosis.why
