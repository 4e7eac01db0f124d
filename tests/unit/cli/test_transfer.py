"""`opsd pairs import` and `export`: nothing is lost, nothing is sent twice, the rest goes on."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from opsd.daemon.cli.exits import Exit
from opsd.daemon.cli.transfer import unix_s
from opsd.v1 import collection_pb2 as pb
from opsd.v1 import collection_pb2_grpc


@dataclass
class FakeSources(collection_pb2_grpc.SourceServiceServicer):
    """Exports what a test put into it; takes problems in."""

    pairs: list[pb.ExportedPair] = field(default_factory=list)
    break_after: list[int] = field(default_factory=list)
    asked_after: list[int] = field(default_factory=list)
    problems: dict[str, pb.ProblemInput] = field(default_factory=dict)
    kind_of: Any = None
    attempts: dict[str, pb.SubmitAnswerRequest] = field(default_factory=dict)
    outcomes: dict[str, pb.SubmitOutcomeRequest] = field(default_factory=dict)

    def ExportPairs(self, request: Any, context: Any) -> Iterator[pb.ExportedPair]:
        self.asked_after.append(request.after_seq)
        limit = self.break_after.pop(0) if self.break_after else -1
        for done, pair in enumerate(p for p in self.pairs if p.seq > request.after_seq):
            if done == limit:
                context.abort(grpc.StatusCode.UNAVAILABLE, "draining")
            yield pair

    def ExportProblems(self, request: Any, context: Any) -> Iterator[pb.Problem]:
        for seq, given in enumerate(self.problems.values(), start=1):
            if seq > request.after_seq:
                yield pb.Problem(input=given, seq=seq, state=pb.PROBLEM_STATE_OPEN)

    def SubmitProblems(self, requests: Any, context: Any) -> Iterator[pb.ProblemResult]:
        for request in requests:
            given = request.problem
            kind = pb.PROBLEM_RESULT_KIND_STORED
            if given.id in self.problems:
                kind = pb.PROBLEM_RESULT_KIND_ALREADY_STORED
            if self.kind_of is not None:
                kind = self.kind_of(given)
            self.problems[given.id] = given
            yield pb.ProblemResult(id=given.id, kind=kind, message="because")

    def ListProblems(self, request: Any, context: Any) -> pb.ListProblemsResponse:
        found = [pb.Problem(input=given, tries=1) for given in self.problems.values()]
        return pb.ListProblemsResponse(problems=found[: request.page_size], total=len(found))

    def SubmitAnswer(self, request: Any, context: Any) -> pb.AnswerResult:
        self.attempts[request.attempt_id] = request
        if request.attempt_id == "nobody":
            context.abort(grpc.StatusCode.NOT_FOUND, "no attempt 'nobody'")
        kind = pb.VERDICT_KIND_PASS if request.reference == "2" else pb.VERDICT_KIND_FAIL
        result = pb.AnswerResult(attempt_id=request.attempt_id, verdict=pb.Verdict(kind=kind))
        if kind == pb.VERDICT_KIND_PASS:
            result.own_pair.id, result.own_pair.status = "p1", pb.PAIR_STATUS_VERIFIED
        else:
            result.problem_id = "q1"
        return result

    def SubmitAnswers(self, requests: Any, context: Any) -> Iterator[pb.AnswerResult]:
        for request in requests:
            if request.attempt_id == "nobody":
                yield pb.AnswerResult(
                    attempt_id="nobody", error_code="NOT_FOUND", message="no attempt 'nobody'"
                )
            else:
                yield self.SubmitAnswer(request, context)

    def SubmitOutcome(self, request: Any, context: Any) -> pb.OutcomeResult:
        already = request.attempt_id in self.outcomes
        self.outcomes[request.attempt_id] = request
        return pb.OutcomeResult(attempt_id=request.attempt_id, already_stored=already)

    def SubmitOutcomes(self, requests: Any, context: Any) -> Iterator[pb.OutcomeResult]:
        for request in requests:
            yield self.SubmitOutcome(request, context)

    def ListOutcomes(self, request: Any, context: Any) -> pb.ListOutcomesResponse:
        return pb.ListOutcomesResponse()

    def GetSources(self, request: Any, context: Any) -> pb.GetSourcesResponse:
        source = pb.SourceStatus(name="harvest", enabled=True, doing="waits", daily_quota=9)
        return pb.GetSourcesResponse(sources=[source])


@dataclass
class Sources:
    fake: FakeSources
    address: str


@pytest.fixture
def sources() -> Iterator[Sources]:
    server = grpc.server(ThreadPoolExecutor(8))
    fake = FakeSources()
    collection_pb2_grpc.add_SourceServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield Sources(fake, f"127.0.0.1:{port}")
    server.stop(None).wait()


def records(count: int) -> list[dict[str, Any]]:
    return [
        {"question": f"{number}+1?", "answer": f"{number}+1\n#### {number + 1}"}
        for number in range(count)
    ]


def write(path: Path, found: list[Any]) -> str:
    lines = [each if isinstance(each, str) else json.dumps(each) for each in found]
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


def resume_file(file: str) -> Path:
    return Path(file + ".opsd-resume.json")


def rejected(file: str) -> list[Any]:
    return [json.loads(line) for line in Path(file + ".rejected.jsonl").read_text().splitlines()]


def test_a_data_set_is_imported(opsd: Any, daemon: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "gsm8k.jsonl", records(700))
    result = opsd("pairs", "import", file, "--preset", "gsm8k", "--verifier", "numeric")
    assert result.code == 0, result.err
    assert len(daemon.fake.stored) == 700
    (one, *_) = daemon.fake.stored.values()
    assert (one.source, one.verifier, one.reference) == ("gsm8k", "numeric", "1")
    assert [line.split() for line in result.out.splitlines()[1:]] == [
        ["verified", "700"],
        ["total", "700"],
    ]
    assert list(tmp_path.iterdir()) == [Path(file)], "nothing is left beside the data"
    again = opsd("pairs", "import", file, "--verifier", "numeric", "-o", "json")
    assert again.json["counts"] == {"stored before": 700}


def test_bad_lines_are_reported_and_the_rest_goes_on(
    opsd: Any, daemon: Any, tmp_path: Path
) -> None:
    held_out = "2+1?"
    daemon.fake.status_of = lambda pair: (
        pb.PAIR_STATUS_HELD_OUT if pair.prompt == held_out else pb.PAIR_STATUS_VERIFIED
    )
    file = write(tmp_path / "p.jsonl", ["{", *records(4), {"question": "?"}, ""])
    result = opsd("pairs", "import", file)
    assert result.code == Exit.INVALID_INPUT
    assert f"{file}:1: malformed: not JSON" in result.err
    found = rejected(file)
    assert [(each["line"], each["reason"].partition(":")[0]) for each in found] == [
        (1, "malformed"),
        (4, "held_out"),
        (6, "malformed"),
    ]
    assert json.loads(found[1]["record"])["question"] == held_out
    assert len(daemon.fake.stored) == 4
    assert not resume_file(file).exists()


def test_strict_stops_at_the_first(opsd: Any, daemon: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", [*records(3), "{", *records(9)[3:]])
    result = opsd("pairs", "import", file, "--strict")
    assert result.code == Exit.INVALID_INPUT
    assert f"{file}:4: malformed" in result.err
    assert len(daemon.fake.stored) <= 3
    assert rejected(file)[0]["line"] == 4
    # Sent again as it is, it stops there again: nothing that was refused is passed over.
    again = opsd("pairs", "import", file, "--strict")
    assert again.code == Exit.INVALID_INPUT
    assert f"{file}:4: malformed" in again.err
    assert [each["line"] for each in rejected(file)] == [4]


def test_a_quota_that_is_used_up_stops_it_and_it_goes_on_there(
    opsd: Any, daemon: Any, tmp_path: Path
) -> None:
    def quota(pair: Any) -> Any:
        number = int(pair.prompt.partition("+")[0])
        return pb.PAIR_STATUS_VERIFIED if number < 600 else pb.PAIR_STATUS_REFUSED_QUOTA

    daemon.fake.status_of = quota
    file = write(tmp_path / "p.jsonl", ["{", *records(5000)])
    result = opsd("pairs", "import", file)
    assert result.code == Exit.REFUSED
    assert f"{file}:602: refused_quota" in result.err
    assert "goes on at this line" in result.err
    assert result.err.count("refused_quota") == 1
    assert len(daemon.fake.stored) < 5000, "the rest was not sent"
    assert [each["line"] for each in rejected(file)] == [1]
    daemon.fake.status_of = lambda pair: pb.PAIR_STATUS_VERIFIED
    again = opsd("pairs", "import", file, "-o", "json")
    assert "going on after line 601" in again.err
    assert len({pair.prompt for pair in daemon.fake.stored.values()}) == 5000
    assert again.json["lines"] == 5001
    assert set(again.json["counts"]) <= {"malformed", "verified", "stored before"}
    daemon.fake.status_of = quota
    lines = "".join(json.dumps(each) + "\n" for each in records(700))
    result = opsd("pairs", "import", "-", stdin=lines.encode())
    assert (result.code, "stdin:601: refused_quota" in result.err) == (Exit.REFUSED, True), (
        result.err
    )
    assert "what came before line 601 was dealt with" in result.err


def test_what_was_refused_before_it_was_interrupted_is_not_forgotten(
    opsd: Any, daemon: Any, tmp_path: Path
) -> None:
    file = write(tmp_path / "p.jsonl", records(900))
    daemon.fake.status_of = lambda pair: pb.PAIR_STATUS_HELD_OUT
    daemon.fake.break_after = [500, 0, 0]
    assert opsd("pairs", "import", file, "--retries", "1").code == Exit.UNREACHABLE
    daemon.fake.status_of = lambda pair: pb.PAIR_STATUS_VERIFIED
    daemon.fake.break_after = []
    second = opsd("pairs", "import", file)
    assert "going on after line 500" in second.err
    assert second.code == Exit.NEGATIVE_OUTCOME


def test_it_goes_on_where_it_was_interrupted(opsd: Any, daemon: Any, tmp_path: Path) -> None:
    bad = ["{bad 0"]
    file = write(tmp_path / "p.jsonl", [*bad, *records(900)])
    daemon.fake.break_after = [500, 0, 0]
    first = opsd("pairs", "import", file, "--retries", "1", "-o", "json")
    assert first.code == Exit.UNREACHABLE
    assert first.json["counts"] == {"malformed": 1, "verified": 500}
    place = json.loads(resume_file(file).read_text())
    assert place["line"] == 501
    # As if the command had been killed before it kept its last place.
    with Path(file + ".rejected.jsonl").open("a") as out:
        out.write('{"line": 777, "rea')
    daemon.fake.break_after = []
    daemon.fake.calls.clear()
    before = set(daemon.fake.stored)
    second = opsd("pairs", "import", file, "-o", "json")
    assert "going on after line 501" in second.err
    assert second.json["counts"] == {"malformed": 1, "verified": 900}
    assert len(daemon.fake.stored) == 900
    assert len(set(daemon.fake.stored) - before) == 400
    assert [each["line"] for each in rejected(file)] == [1]
    assert not resume_file(file).exists()


@pytest.mark.parametrize("change", ["data", "options", "--no-resume", "damage"])
def test_a_place_in_other_data_or_under_other_options_is_of_no_use(
    opsd: Any, daemon: Any, tmp_path: Path, change: str
) -> None:
    found = records(300)
    file = write(tmp_path / "p.jsonl", found)
    daemon.fake.break_after = [200]
    opsd("pairs", "import", file, "--retries", "0")
    assert resume_file(file).exists()
    options = []
    if change == "data":
        write(tmp_path / "p.jsonl", [{"question": "new?", "answer": "1"}, *found])
    elif change == "options":
        options = ["--verifier", "numeric"]
    elif change == "damage":
        resume_file(file).write_text("{")
    else:
        options = ["--no-resume"]
    result = opsd("pairs", "import", file, "-o", "json", *options)
    assert "going on" not in result.err
    assert result.json["lines"] == 300 + (change == "data")


def test_a_place_is_of_no_use_after_a_line_was_taken_out_far_behind_the_beginning(
    opsd: Any, daemon: Any, tmp_path: Path
) -> None:
    found = [{"question": f"{'long ' * 90}{i}?", "answer": str(i)} for i in range(300)]
    file = write(tmp_path / "p.jsonl", found)
    daemon.fake.break_after = [200]
    opsd("pairs", "import", file, "--retries", "0")
    assert resume_file(file).exists()
    del found[190]
    write(tmp_path / "p.jsonl", found)
    result = opsd("pairs", "import", file, "-o", "json")
    assert "going on" not in result.err
    assert (result.code, result.json["lines"]) == (0, 299)


def test_gzip_is_read_and_resumed(opsd: Any, daemon: Any, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.gz"
    lines = "".join(json.dumps(record) + "\n" for record in records(600))
    path.write_bytes(gzip.compress(lines.encode()))
    daemon.fake.break_after = [300]
    assert opsd("pairs", "import", str(path), "--retries", "0").code == Exit.UNREACHABLE
    result = opsd("pairs", "import", str(path), "-o", "json")
    assert "going on after line 300" in result.err
    assert result.json["counts"] == {"verified": 600}
    assert len(daemon.fake.stored) == 600
    piped = opsd("pairs", "import", "-", "-o", "json", stdin=path.read_bytes())
    assert sum(piped.json["counts"].values()) == 600
    path.write_bytes(path.read_bytes()[:-20])
    for file, name in ((str(path), str(path)), ("-", "stdin")):
        damaged = opsd("pairs", "import", file, stdin=path.read_bytes())
        assert damaged.code == Exit.INVALID_INPUT
        assert f"{name}: damaged gzip data" in damaged.err


def test_stdin(opsd: Any, daemon: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = "".join(json.dumps(record) + "\n" for record in records(3)) + "{\n"
    result = opsd("pairs", "import", "-", stdin=lines.encode())
    assert result.code == Exit.INVALID_INPUT
    assert "stdin:4: malformed" in result.err
    assert len(daemon.fake.stored) == 3
    assert list(tmp_path.iterdir()) == []


def test_unverified_pairs_are_no_rejects(opsd: Any, daemon: Any, tmp_path: Path) -> None:
    daemon.fake.status_of = lambda pair: pb.PAIR_STATUS_UNVERIFIED
    file = write(tmp_path / "p.jsonl", records(2))
    assert opsd("pairs", "import", file).code == Exit.NEGATIVE_OUTCOME
    assert opsd("pairs", "import", file, "--allow-unverified").code == Exit.OK
    assert not Path(file + ".rejected.jsonl").exists()


def test_a_bad_map_is_a_usage_error(opsd: Any, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", records(1))
    result = opsd("pairs", "import", file, "--map", "promt=question")
    assert result.code == Exit.USAGE
    assert "'promt' is none of prompt" in result.err


def exported(count: int) -> list[pb.ExportedPair]:
    return [
        pb.ExportedPair(
            seq=3 * number + 1,
            input=pb.PairInput(id=f"id-{number}", prompt="Grüße", solution="x" * 200),
            status="verified",
            origin="imported",
            provenance_json='{"passed": 2}' if number == 0 else "",
        )
        for number in range(count)
    ]


def test_export_goes_on_after_a_lost_connection(
    opsd: Any, sources: Sources, tmp_path: Path
) -> None:
    sources.fake.pairs = exported(50)
    sources.fake.break_after = [20, 0, 10]
    file = tmp_path / "out.jsonl"
    result = opsd("pairs", "export", str(file), address=sources.address)
    assert (result.code, result.out) == (0, "")
    assert "50 pairs" in result.err
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["id"] for line in lines] == [f"id-{number}" for number in range(50)]
    assert (lines[0]["provenance"], lines[0]["prompt"]) == ({"passed": 2}, "Grüße")
    assert "provenance" not in lines[1]
    assert list(tmp_path.iterdir()) == [file]


def test_an_interrupted_export_is_no_file_and_goes_on(
    opsd: Any, sources: Sources, tmp_path: Path
) -> None:
    sources.fake.pairs = exported(50)
    sources.fake.break_after = [20]
    file = tmp_path / "out.jsonl"
    options = ("pairs", "export", str(file), "--retries", "0")
    assert opsd(*options, address=sources.address).code == Exit.UNREACHABLE
    assert not file.exists()
    part = tmp_path / "out.jsonl.part"
    with part.open("ab") as out:
        out.write(b'{"id": "half a li')
    # Another selection begins anew.
    sources.fake.break_after = [0]
    other = opsd(*options, "--source", "s", address=sources.address)
    assert (other.code, sources.fake.asked_after[-1]) == (Exit.UNREACHABLE, 0)


def test_an_interrupted_export_is_taken_up(opsd: Any, sources: Sources, tmp_path: Path) -> None:
    sources.fake.pairs = exported(50)
    sources.fake.break_after = [20]
    file = tmp_path / "out.jsonl"
    opsd("pairs", "export", str(file), "--retries", "0", address=sources.address)
    with (tmp_path / "out.jsonl.part").open("ab") as out:
        out.write(b'{"id": "half a line' + b"x" * 100_000)
    result = opsd("pairs", "export", str(file), address=sources.address)
    assert (result.code, sources.fake.asked_after[-1]) == (0, 58)
    assert len([json.loads(line) for line in file.read_text().splitlines()]) == 50


def test_export_to_stdout(opsd: Any, sources: Sources) -> None:
    sources.fake.pairs = exported(2)
    result = opsd("pairs", "export", "-", address=sources.address)
    assert [line["id"] for line in result.lines] == ["id-0", "id-1"]


def test_since_when(opsd: Any, sources: Sources) -> None:
    assert unix_s("1970-01-02") == 86_400.0
    assert unix_s("1970-01-01T01:00+01:00") == 0.0
    assert unix_s("1.5") == 1.5
    result = opsd("pairs", "export", "x", "--since", "yesterday", address=sources.address)
    assert result.code == Exit.USAGE


def test_problems_come_in_and_go_out(opsd: Any, sources: Sources, tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", records(3))
    result = opsd("problems", "import", file, "-o", "json", address=sources.address)
    assert result.json["counts"] == {"stored": 3}
    out = tmp_path / "out.jsonl"
    assert opsd("problems", "export", str(out), address=sources.address).code == 0
    before = dict(sources.fake.problems)
    again = opsd("problems", "import", str(out), "-o", "json", address=sources.address)
    assert again.json["counts"] == {"already stored": 3}
    assert sources.fake.problems == before
    listed = opsd("problems", "list", "-o", "json", address=sources.address)
    assert listed.json["total"] == 3
    assert "known" in opsd("problems", "list", address=sources.address).out


def test_problems_in_their_own_form(opsd: Any, sources: Sources, tmp_path: Path) -> None:
    good = {"prompt": "2+3?", "verifier": "numeric", "priority": 4}
    file = write(tmp_path / "p.jsonl", [good])
    assert opsd("problems", "submit", file, address=sources.address).code == 0
    (stored,) = sources.fake.problems.values()
    assert (stored.priority, stored.reference) == (4, "")
    file = write(tmp_path / "q.jsonl", [good | {"promt": "x"}])
    result = opsd("problems", "submit", file, address=sources.address)
    assert result.code == Exit.INVALID_INPUT
    assert "promt: no such field; did you mean prompt?" in result.err
    sources.fake.kind_of = lambda given: pb.PROBLEM_RESULT_KIND_HELD_OUT
    file = write(tmp_path / "r.jsonl", [good])
    result = opsd("problems", "submit", file, address=sources.address)
    assert result.code == Exit.INVALID_INPUT
    assert "--strict" not in result.err
    assert not list(tmp_path.glob("*.opsd-resume.json"))


def test_sources_are_shown(opsd: Any, sources: Sources) -> None:
    result = opsd("problems", "status", address=sources.address)
    assert "0 of 9" in result.out
    assert "harvest" in result.out


def test_an_answer_for_an_attempt(opsd: Any, sources: Sources, tmp_path: Path) -> None:
    address = sources.address
    result = opsd("attempts", "answer", "a1", "--reference", "2", address=address)
    assert (result.code, sources.fake.attempts["a1"].verifier) == (0, "math")
    assert "p1 verified" in result.out
    failed = opsd("attempts", "answer", "a2", "--reference", "3", address=address)
    assert (failed.code, "q1" in failed.out) == (0, True)
    assert opsd("attempts", "answer", "a1", address=address).code == Exit.USAGE
    unknown = opsd("attempts", "answer", "nobody", "--reference", "2", address=address)
    assert unknown.code == Exit.NOT_FOUND
    lines = [
        {"attempt_id": "a3", "reference": "2", "verifier": "exact"},
        {"attempt_id": "nobody", "reference": "2"},
        {"attempt_id": "a4"},
    ]
    file = write(tmp_path / "answers.jsonl", lines)
    many = opsd("attempts", "answer", "--file", file, "-o", "json", address=address)
    assert many.code == Exit.INVALID_INPUT
    assert many.json["counts"] == {"attempt passed": 1, "not found": 1, "malformed": 1}
    assert sources.fake.attempts["a3"].verifier == "exact"


def test_an_outcome_of_an_attempt(opsd: Any, sources: Sources, tmp_path: Path) -> None:
    address = sources.address
    result = opsd("attempts", "outcome", "a1", "accepted", address=address)
    assert (result.code, result.out) == (0, "stored\n")
    assert sources.fake.outcomes["a1"].outcome == pb.ATTEMPT_OUTCOME_KIND_ACCEPTED
    assert opsd("attempts", "outcome", "a1", "perhaps", address=address).code == Exit.USAGE
    assert opsd("attempts", "outcome", "a1", address=address).code == Exit.USAGE
    lines = [{"attempt_id": f"b{n}", "outcome": "rejected"} for n in range(300)]
    file = write(tmp_path / "o.jsonl", [*lines, {"attempt_id": "x", "outcome": "meh"}])
    many = opsd("attempts", "outcome", "--file", file, "-o", "json", address=address)
    assert many.json["counts"] == {"stored": 300, "malformed": 1}
    assert threading.active_count() < 50
