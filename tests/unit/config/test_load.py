"""The configuration: files, environment, and every way to get them wrong."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opsd.daemon.config import reference
from opsd.daemon.config.check import check_environment, require_environment
from opsd.daemon.config.keys import all_keys
from opsd.daemon.config.lines import key_lines
from opsd.daemon.config.load import OriginKind, find_config, load_config
from opsd.daemon.config.problems import hide_secrets
from opsd.daemon.config.schema import OpsdConfig
from opsd.daemon.config.template import default_of, resolved, template, toml_value
from opsd.daemon.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "opsd.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def errors(tmp_path: Path, text: str | bytes, environ: dict[str, str] | None = None) -> str:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ or {})
    return str(caught.value).replace(str(path), "F")


FILE_ERRORS = [
    # Typos, in keys and tables
    ("[server]\nprot = 1\n", "F:2: server.prot: no such key; did you mean server.port?"),
    ("[sever]\nport = 1\n", "F:1: sever: no such key; did you mean [server]?"),
    ("[gate.margins]\nfoo = 1\n", "F:2: gate.margins.foo: no such key; known here: markers_loss,"),
    ("[signing]\ntrusted_keys = ['abc']\n", "trusted_keys[0]: 'abc' is no public key: write ed255"),
    ("[objective]\n", "F:1: objective: no such key; did you mean [training.objective]?"),
    ("rank = 3\n", "F:1: rank: no such key; did you mean training.lora.rank?"),
    ("[server]\nzzzz = 1\n", "F:2: server.zzzz: no such key; known here: host, port"),
    # Wrong values
    ("[server]\nport = 70000\n", "F:2: server.port: 70000 is not allowed, must be an integer, at "),
    ("[server]\nport = '80'\n", '"80" is not allowed, must be an integer, at least 0 and at most'),
    ("[server]\nport = '80'\n", "; write it without quotes"),
    ("[server]\nport = true\n", "F:2: server.port: true is not allowed"),
    ("[server]\nport = 1.5\n", "F:2: server.port: 1.5 is not allowed"),
    ("[engine]\nenforce_eager = 1\n", "must be true or false; the default is false"),
    ("[model]\ndtype = 'bf16'\n", 'one of "float32", "bfloat16", "float16"; did you mean "bf'),
    ("[engine]\nmax_lora_rank = 12\n", "must be one of 8, 16, 32, 64, 128, 256"),
    ("[engine]\ngpu_memory_fraction = 0\n", "must be a number, above 0 and at most 1"),
    ("[runs]\nmax_wall_s = inf\n", "F:2: runs.max_wall_s: inf is not finite, must be a number"),
    ("[log]\nlevel = 2020-01-01\n", "F:2: log.level: 2020-01-01 is a date or time; put it in"),
    ("[training.lora]\ntarget_modules = []\n", "must be a list of strings that is not empty"),
    ("[training.lora]\ntarget_modules = ['a',\n 3]\n", "F:3: training.lora.target_modules[1]: 3"),
    ("model = 'x'\n", 'F:1: model: "x" is not a table; write [model]'),
    # Where things stand, however they are written
    ("server.port = -1\n", "F:1: server.port: -1"),
    ("server = { host = 'x', port = -1 }\n", "F:1: server.port: -1"),
    ('["server"]\n\n"port" = -1\n', "F:3: server.port: -1"),
    ("[training]\n\noptim.num_steps = 0\n", "F:3: training.optim.num_steps: 0"),
    ("[server]\nhost = '''a\nb'''\nport = -1\n", "F:4: server.port: -1"),
    # Suites
    ("[[gate.suites]]\nname = 'a'\n", "F:1: gate.suites[0].path: is missing; add path = … (a str"),
    (
        "[[gate.suites]]\nname='a'\npath='p'\nrole='guard'\n\n[[gate.suites]]\nname='b'\n"
        "path='p'\nrole='gaurd'\n",
        'F:9: gate.suites[1].role: "gaurd" is not allowed, must be one of "target", "guard"; did '
        'you mean "guard"?',
    ),
    (
        "[gate]\nsuites = [\n { name = 'a', path = 'p', role = 'guard', margin = 2 },\n]\n",
        "F:3: gate.suites[0].margin: 2 is not allowed",
    ),
    ("[gate.suites]\nname = 'a'\n", "write [[gate.suites]] with two brackets"),
    (
        "[[gate.suites]]\nname='a'\npath='p'\nrole='guard'\nsealed=true\n",
        "suite 'a' is sealed without a budget: set budget to the number of gates",
    ),
    ("[gate]\nsamples = 4\n", "F:2: gate.samples: is 4, but gate.temperature is 0"),
    (
        "[promotion]\napprovals_required = 2\nauto_promote_passes = true\n",
        "F:3: promotion.auto_promote_passes: approves without people",
    ),
    (
        "[[gate.suites]]\nname='a'\npath='p'\nrole='guard'\nsamples=2\n",
        "samples of suite 'a' is 2, but gate.temperature is 0",
    ),
    (
        "[[gate.suites]]\nname='a'\npath='p'\nrole='guard'\n[[gate.suites]]\nname='a'\npath='q'\n"
        "role='guard'\n",
        "gate.suites: names must differ",
    ),
    # Across keys
    (
        "[engine]\nmax_lora_rank = 8\n[training.lora]\nrank = 16\n",
        "F:4: training.lora.rank is 16 but engine.max_lora_rank is 8",
    ),
    # No TOML at all
    ("[server]\nport = \n", "F:2: not TOML: Invalid value"),
    ("[server\n", "F:1: not TOML: Expected ']'"),
    ("[server]\nhost = localhost\n", 'in: host = localhost; strings need quotes ("…")'),
    ("a = 1\na = 2\n", "F:2: not TOML: Cannot overwrite a value"),
    (b"[log]\nlevel = '\xff'\n", "F:2: byte 0xff is not UTF-8"),
]


@pytest.mark.parametrize(("text", "message"), FILE_ERRORS, ids=[m[:60] for _, m in FILE_ERRORS])
def test_an_error_names_key_line_and_fix(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert message in errors(tmp_path, text)


def test_all_errors_come_at_once_in_order(tmp_path: Path) -> None:
    text = "[server]\nprot = 1\nport = -1\n[log]\nlevel = 'loud'\n"
    found = errors(tmp_path, text, {"OPSD_POOL__NUM_DEVICES": "x"}).splitlines()
    assert found[0] == "4 problems in the configuration:"
    assert "OPSD_POOL__NUM_DEVICES" in found[1]
    assert [line.split()[0] for line in found[2:]] == ["F:2:", "F:3:", "F:5:"]


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; make one with: opsd config init"):
        load_config(tmp_path / "none.toml", {})


def test_a_password_is_in_no_message(tmp_path: Path) -> None:
    url = "postgresql://me:hunter2@db/x"
    loaded = load_config(write(tmp_path, f"[store]\nurl = '{url}'\n"), {})
    assert loaded.config.store.url == url
    assert "hunter2" not in str(list(resolved(loaded)))
    assert hide_secrets("postgresql://db/x?user=me&password=hunter2&a=b").endswith("=***&a=b")
    text = errors(tmp_path, "[store]\nurl = ['postgresql://me:hunter2@db/x']\n")
    assert "hunter2" not in text


ENVIRONMENT = [
    ("OPSD_SERVER__PORT", "0", "server.port", 0),
    ("OPSD_STATE_DIR", "/s", "state_dir", Path("/s")),
    ("OPSD_TRAINING__OPTIM__LEARNING_RATE", "1e-3", "training.optim.learning_rate", 1e-3),
    ("OPSD_ENGINE__ENFORCE_EAGER", "yes", "engine.enforce_eager", True),
    ("OPSD_ENGINE__ENFORCE_EAGER", "0", "engine.enforce_eager", False),
    ("OPSD_ENGINE__MAX_LORA_RANK", "128", "engine.max_lora_rank", 128),
    ("OPSD_MODEL__MAX_MODEL_LEN", "", "model.max_model_len", None),
    ("OPSD_MODEL__MAX_MODEL_LEN", "256", "model.max_model_len", 256),
    ("OPSD_LOG__LEVEL", "debug", "log.level", "debug"),
    (
        "OPSD_TRAINING__LORA__TARGET_MODULES",
        '["q_proj"]',
        "training.lora.target_modules",
        ("q_proj",),
    ),
]


@pytest.mark.parametrize(("variable", "text", "key", "value"), ENVIRONMENT)
def test_the_environment_overrides_by_type(
    tmp_path: Path, variable: str, text: str, key: str, value: Any
) -> None:
    path = write(tmp_path, "[server]\nport = 5\n[log]\nlevel = 'error'\n")
    loaded = load_config(path, {variable: text})
    found: Any = loaded.config
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
    assert loaded.origin(key).kind is OriginKind.ENVIRONMENT
    assert loaded.where(key) == f"environment {variable}"


def test_the_environment_replaces_a_whole_list(tmp_path: Path) -> None:
    path = write(tmp_path, "[[gate.suites]]\nname='a'\npath='p'\nrole='guard'\n")
    suites = '[{"name": "b", "path": "/q", "role": "target"}]'
    loaded = load_config(path, {"OPSD_GATE__SUITES": suites})
    assert [suite.name for suite in loaded.config.gate.suites] == ["b"]
    text = errors(tmp_path, path.read_text(), {"OPSD_GATE__SUITES": '[{"name": "b"}]'})
    assert "environment OPSD_GATE__SUITES: gate.suites[0].path: is missing" in text


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("OPSD_SERVER__PROT", "1", "did you mean OPSD_SERVER__PORT?"),
        ("OPSD_SERVER_PORT", "1", "did you mean OPSD_SERVER__PORT?"),
        ("OPSD_TRAINING_OPTIM_NUM_STEPS", "1", "did you mean OPSD_TRAINING__OPTIM__NUM_STEPS?"),
        ("OPSD_SERVER__QQQQQQ", "1", "no such key"),
        ("OPSD_STATEDIR", "x", "did you mean OPSD_STATE_DIR?"),
        ("OPSD_GATE__SUITES__PATH", "x", "did you mean OPSD_GATE__SUITES (a JSON list)?"),
        ("OPSD_SERVER__PORT", "http", '"http" is not an integer'),
        ("OPSD_SERVER__PORT", "70000", "environment OPSD_SERVER__PORT: server.port: 70000"),
        ("OPSD_ENGINE__ENFORCE_EAGER", "maybe", "is not true or false"),
        ("OPSD_TRAINING__LORA__TARGET_MODULES", "q_proj", "write it as JSON"),
        ("OPSD_TRAINING__LORA__TARGET_MODULES", '"q"', "write it as JSON"),
        ("OPSD_RUNS__MAX_WALL_S", "nan", "is not finite"),
        ("OPSD_STORE__URL__X", "1", "no such key"),
    ],
)
def test_a_wrong_variable_is_named(variable: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, {variable: text})
    assert f"environment {variable}: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("OPSD_CONFIG", "x"),
        ("OPSD_ADDRESS", "x"),
        ("OPSD_FAILPOINT", "x"),
        ("OPSD_TRAINER_FAILPOINT", "x"),
        ("OPSD_SOMETHING_ELSE", "x"),
        # Kubernetes makes these for services called opsd and opsd-server.
        ("OPSD_PORT", "tcp://10.0.0.1:50051"),
        ("OPSD_SERVER_PORT", "tcp://10.0.0.1:50051"),
        ("OPSD_SERVER_PORT_50051_TCP_ADDR", "10.0.0.1"),
        ("OPSD_SERVER_SERVICE_HOST", "10.0.0.1"),
        ("OPSD_SERVER_SERVICE_PORT_GRPC", "50051"),
        ("PATH", "x"),
    ],
)
def test_other_variables_are_let_be(variable: str, text: str) -> None:
    assert load_config(None, {variable: text}).config == load_config(None, {}).config


def test_a_scalar_where_the_environment_wants_a_table(tmp_path: Path) -> None:
    text = errors(tmp_path, "server = 3\n", {"OPSD_SERVER__PORT": "1"})
    assert "F:1: server: 3 is not a table" in text


def test_relative_paths_are_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc" / "c.toml"
    path.write_text(
        "state_dir = 's'\n[model]\npath = 'm'\n[store]\nurl = 'sqlite:///d.db?x=1'\n"
        "[[gate.suites]]\nname = 'a'\npath = '../a.jsonl'\nrole = 'guard'\n"
    )
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("etc/c.toml"), {}).config
    base = tmp_path / "etc"
    assert config.state_dir == base / "s"
    assert config.model.path == str(base / "m")
    assert config.store.url == f"sqlite:///{base}/d.db?x=1"
    assert config.gate.suites[0].path == str(base / "../a.jsonl")
    assert load_config(None, {}).config.state_dir == tmp_path / "opsd-state"


@pytest.mark.parametrize("url", ["sqlite:////abs/d.db", "postgresql://h/d", "sqlite:///:memory:"])
def test_other_urls_stay_as_they_are(url: str) -> None:
    assert load_config(None, {"OPSD_STORE__URL": url}).config.store.url == url


def test_the_file_is_looked_up_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    system = tmp_path / "system.toml"
    monkeypatch.setattr("opsd.daemon.config.load.SYSTEM_CONFIG", system)
    assert find_config(None, {}) is None
    system.touch()
    assert find_config(None, {}) == system
    Path("opsd.toml").touch()
    assert find_config(None, {}) == Path("opsd.toml")
    assert find_config(None, {"OPSD_CONFIG": "e"}) == Path("e")
    assert find_config(Path("x"), {"OPSD_CONFIG": "e"}) == Path("x")


def test_origins(tmp_path: Path) -> None:
    path = write(tmp_path, "[server]\n\nport = 5\n")
    loaded = load_config(path, {"OPSD_LOG__LEVEL": "debug"})
    origins = {name: origin for name, _, origin in resolved(loaded)}
    assert origins["server.port"] == f"{path}:3"
    assert origins["log.level"] == "environment OPSD_LOG__LEVEL"
    assert origins["server.host"] == "default"
    keys = [key for key in all_keys().values() if not key.in_list]
    assert set(origins) == {key.name for key in keys if key.element is None}


# --- the template


def test_the_template_holds_every_key_and_loads_as_the_defaults(tmp_path: Path) -> None:
    text = template()
    loaded = load_config(write(tmp_path, text), {})
    assert loaded.config == load_config(tmp_path / "opsd.toml", {}).config
    assert loaded.config.server == OpsdConfig().server
    for key in all_keys().values():
        assert f"#{key.path[-1]} = " in text or f"#[[{key.name}]]" in text
        assert key.field.description
        assert key.field.description in text
    assert "# REQUIRED. Directory of the model" in text


def test_the_templates_commented_defaults_are_the_defaults(tmp_path: Path) -> None:
    # Lists of tables are left out: their keys have no table here.
    entries = [entry for entry in template().split("\n\n") if "#[[" not in entry]
    lines = [
        line.removeprefix("#") if line.startswith("#") and line[1:2].isalpha() else line
        for line in "\n\n".join(entries).splitlines()
        if not line.endswith("…")
    ]
    # The keys of [[gate.suites]] have no table here.
    of_suites = {
        f"{key.path[-1]} = {toml_value(default_of(key))}"
        for key in all_keys().values()
        if key.in_list and not key.field.is_required()
    }
    text = "\n".join(line for line in lines if line not in of_suites)
    loaded = load_config(write(tmp_path, text), {}).config
    default = OpsdConfig(model={"path": "/path/to/model"})  # type: ignore[arg-type]
    assert loaded.model_copy(update={"state_dir": default.state_dir}) == default


def values() -> st.SearchStrategy[dict[str, Any]]:
    text = st.text(st.characters(codec="utf-8"), max_size=20)
    options: dict[str, st.SearchStrategy[Any]] = {
        "server.port": st.integers(0, 65535),
        "server.host": text,
        "log.level": st.sampled_from(["debug", "info"]),
        "engine.enforce_eager": st.booleans(),
        "training.optim.learning_rate": st.floats(1e-9, 1.0),
        "training.lora.target_modules": st.lists(text, min_size=1, max_size=3).map(tuple),
        "runs.triggers.cron": text,
        "pool.visible_devices": text,
    }
    return st.fixed_dictionaries({}, optional=options)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
@given(chosen=values(), path=st.text(st.characters(codec="utf-8"), max_size=20))
def test_what_is_written_into_the_template_is_what_is_loaded(
    tmp_path: Path, chosen: dict[str, Any], path: str
) -> None:
    text = template(model_path=path)
    for name, value in chosen.items():
        table, _, leaf = name.rpartition(".")
        start = text.index(f"\n[{table}]\n")
        at = text.index(f"\n#{leaf} = ", start)
        end = text.index("\n", at + 1)
        text = f"{text[:at]}\n{leaf} = {toml_value(value)}{text[end:]}"
    loaded = load_config(write(tmp_path, text), {})
    for name, value in chosen.items():
        found: Any = loaded.config
        for part in name.split("."):
            found = getattr(found, part)
        assert found == value
        line = int(loaded.origin(name).where.rpartition(":")[2])
        assert text.split("\n")[line - 1].startswith(name.rpartition(".")[2])


json_like = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(codec="utf-8")),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b-c", "d"]), below, max_size=3)
    ),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["x", "y", "z"]), json_like, max_size=3))
def test_every_key_of_any_text_has_a_line(data: dict[str, Any]) -> None:
    text = "".join(f"# note\n{key} = {toml_value(value)}\n" for key, value in data.items())
    assert tomllib.loads(text) == data
    lines = key_lines(text)
    expected: set[tuple[str | int, ...]] = set()

    def visit(value: Any, path: tuple[str | int, ...]) -> None:
        if path:
            expected.add(path)
        if isinstance(value, dict):
            for key, below in value.items():
                visit(below, (*path, key))
        elif isinstance(value, list):
            for index, below in enumerate(value):
                visit(below, (*path, index))

    visit(data, ())
    assert set(lines) == expected
    assert [lines[(key,)] for key in data] == [2 * n + 2 for n in range(len(data))]


# --- the machine


def good(tmp_path: Path) -> OpsdConfig:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").touch()
    suite = tmp_path / "suite.jsonl"
    suite.write_text("{}\n")
    text = (
        f"state_dir = '{tmp_path}/state'\n[model]\npath = '{model}'\n"
        f"[[gate.suites]]\nname = 'a'\npath = '{suite}'\nrole = 'target'\n"
    )
    return load_config(write(tmp_path, text), {}).config


def test_a_good_configuration_has_no_problem(tmp_path: Path) -> None:
    config = good(tmp_path)
    assert check_environment(config) == []
    require_environment(config)
    assert not (tmp_path / "state").exists()  # checking writes nothing


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"OPSD_MODEL__PATH": ""}, "model.path: is not set; name the directory"),
        ({"OPSD_MODEL__PATH": "none"}, "none is not a directory"),
        ({"OPSD_MODEL__PATH": "."}, "has no config.json"),
        ({"OPSD_STATE_DIR": "opsd.toml"}, "state_dir: {base}/opsd.toml is a file"),
        ({"OPSD_STATE_DIR": "opsd.toml/x"}, "cannot be written by this user"),
        ({"OPSD_ENGINE__DEVICE": "cuda"}, 'engine.device: "cuda", but no NVIDIA GPU'),
        ({"OPSD_POOL__DEVICE": "cuda"}, 'pool.device: "cuda", but no NVIDIA GPU'),
        ({"OPSD_RUNS__TRIGGERS__CRON": "every day"}, "is no crontab expression"),
        ({"OPSD_RUNS__TRIGGERS__TIMEZONE": "Mars"}, "is no time zone"),
        ({"OPSD_RUNS__STALL_TIMEOUT_S": "5"}, "would kill a healthy trainer"),
        ({"OPSD_RUNS__MIN_PAIRS": "30000"}, "no run could ever start"),
        ({"OPSD_MODEL__MAX_MODEL_LEN": "64"}, "leaves no room for a prompt"),
        ({"OPSD_TRAINING__OPTIM__WARMUP_STEPS": "101"}, "more than optim.num_steps (100)"),
        ({"OPSD_TRAINING__OPTIM__ADAM_BETA2": "0"}, "adam_beta2: is 0"),
        ({"OPSD_TRAINING__OBJECTIVE__EPISTEMIC_WORDS": '["?"]'}, "epistemic_words: holds '?'"),
        (
            {
                "OPSD_TRAINING__OBJECTIVE__DIVERGENCE": "policy_gradient",
                "OPSD_TRAINING__OBJECTIVE__TOP_K": "3",
            },
            "objective.top_k: 3 does not go",
        ),
        ({"OPSD_TRAINING__PROMPT__STUDENT_TEMPLATE": "Solve:"}, "lacks {{problem}}"),
        ({"OPSD_TRAINING__PROMPT__TEACHER_TEMPLATE": "{problem}"}, "has none of {{context}}"),
        (
            {"OPSD_TRAINING__PROMPT__STUDENT_TEMPLATE": "{problem} {solution}"},
            "the student never sees it",
        ),
        ({"OPSD_STORE__URL": "mysql://x:secret@y/z"}, "mysql://x:***@y/z is no URL of"),
        ({"OPSD_STORE__URL": "sqlite://"}, "in memory would forget"),
        ({"OPSD_STORE__URL": "sqlite:///:memory:"}, "in memory would forget"),
        ({"OPSD_GATE__SUITES": '[{"name":"a","path":"no","role":"target"}]'}, "is not a file"),
        (
            {"OPSD_GATE__SUITES": '[{"name":"a","path":"suite.jsonl","role":"guard"}]'},
            "no suite has the role target",
        ),
    ],
)
def test_what_this_machine_lacks_is_named(
    tmp_path: Path, environ: dict[str, str], message: str
) -> None:
    good(tmp_path)
    loaded = load_config(tmp_path / "opsd.toml", environ)
    problems = [str(p) for p in check_environment(loaded, has_gpu=lambda: False)]
    assert len(problems) == 1
    assert message.format(base=tmp_path) in problems[0]
    # A finding about two keys may point at the one that is still at its default.
    key = problems[0].partition(": ")[0].removeprefix("environment ")
    assert key in (*environ, "training.rollout.max_new_tokens")
    with pytest.raises(ConfigError):
        require_environment(loaded)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_an_unwritable_state_directory(tmp_path: Path) -> None:
    config = good(tmp_path)
    (tmp_path / "locked").mkdir(mode=0o500)
    config = config.model_copy(update={"state_dir": tmp_path / "locked" / "state"})
    assert "cannot be written by this user" in str(check_environment(config)[0])


def test_the_reference_page_is_up_to_date() -> None:
    page = (ROOT / "docs/reference/config.md").read_text()
    assert page == reference.render(), "run python -m opsd.daemon.config.reference"


def test_a_home_that_is_not_there_is_a_path_like_others(tmp_path: Path) -> None:
    loaded = load_config(write(tmp_path, template(model_path="~nobody-here/model")), {})
    assert loaded.config.model.path == str(tmp_path / "~nobody-here/model")


@pytest.mark.parametrize(
    ("hygiene", "key", "message"),
    [
        ({"languages": ["en", "english"]}, "languages", "english is no language code"),
        ({"scrubber": "no_such_module.x:fn"}, "scrubber", "there is no module no_such_module.x"),
        ({"scrubber": "built-in"}, "scrubber", "built-in is not known"),
        ({"scrubber": ":fn"}, "scrubber", "there is no module "),
        ({"scrubber": "builtin", "languages": ["en"]}, "", ""),
        ({"scrubber": "json.encoder:encode_basestring"}, "", ""),
    ],
)
def test_what_hygiene_names_is_checked(hygiene: dict[str, Any], key: str, message: str) -> None:
    found = check_environment(OpsdConfig(collect={"hygiene": hygiene}))  # type: ignore[arg-type]
    said = [(p.key, p.message) for p in found if p.key.startswith("collect")]
    assert said == ([(f"collect.hygiene.{key}", message)] if key else [])


def test_what_verifiers_need_is_checked(tmp_path: Path) -> None:
    verify: dict[str, Any] = {
        "python_packages": ["packages"],
        "commands": [
            {"name": "a", "argv": ["check"], "sandbox": False, "read_only": [str(tmp_path)]},
            {"name": "b", "argv": ["/nowhere/check"]},
            {"name": "c", "argv": [sys.executable], "read_only": ["/nowhere/rules", "/tmp"]},
        ],
        "remotes": [
            {"name": "c", "address": "x:1", "ca_file": str(tmp_path)},
            {"name": "d", "address": "x:1", "transport": "tls", "cert_file": str(tmp_path)},
        ],
    }
    found = check_environment(OpsdConfig(verify=verify))  # type: ignore[arg-type]
    said = {problem.key: problem.message for problem in found if problem.key.startswith("verify")}
    assert said == {
        "verify.python_packages[0]": "packages is not an absolute path",
        "verify.commands[0].argv": "check is not an absolute path",
        "verify.commands[0].read_only": "has no effect without a sandbox",
        "verify.commands[1].argv": "/nowhere/check is not there",
        "verify.commands[2].read_only": "/nowhere/rules is not there",
        "verify.remotes[0].transport": "is not tls, so the PEM files have no effect",
        "verify.remotes[1].cert_file": "goes with key_file",
    }
    twice = {"commands": [{"name": "a", "argv": ["/x"]}] * 2}
    with pytest.raises(ValueError, match="names must differ, got a, a"):
        OpsdConfig(verify=twice)  # type: ignore[arg-type]
