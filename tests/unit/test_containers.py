"""deploy/: what can be shown of a Dockerfile and of Compose files without an engine that builds and runs them."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from upnext.cli.run import run
from upnext.dashboard.command import dashboard
from upnextd.main import cli

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KNOWN = {
    "FROM", "RUN", "CMD", "LABEL", "EXPOSE", "ENV", "COPY", "ENTRYPOINT", "VOLUME", "USER", "WORKDIR", "ARG", "STOPSIGNAL",
    "HEALTHCHECK", "SHELL",
}  # fmt: skip
SECRET = re.compile(r"(?i)passw(or)?d|secret|token|api_?key|://[^/\s]*:[^/\s@]*@")

Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """(word, rest) of each line, continuation lines joined, comments left out."""
    lines = [line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


def final_stage() -> list[Instruction]:
    every = instructions()
    return every[max(at for at, (word, _) in enumerate(every) if word == "FROM") :]


def only(word: str) -> str:
    [rest] = [rest for found, rest in final_stage() if found == word]
    return rest


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def worker(compose: dict[str, Any]) -> dict[str, Any]:
    return compose["services"]["worker"]


def test_every_instruction_is_one() -> None:
    assert {word for word, _ in instructions()} <= KNOWN
    assert instructions()[0][0] == "FROM"


def test_the_base_is_a_pinned_slim_python_that_upnext_runs_on() -> None:
    bases = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    [base] = set(bases)
    match = re.fullmatch(r"python:3\.(\d+)-slim", base)
    assert match, f"{base}: no tag, or not the slim one"
    assert int(match[1]) >= 11


def test_it_runs_as_a_user_of_its_own_with_a_number() -> None:
    """Kubernetes' runAsNonRoot only believes numbers."""
    uid = only("USER")
    assert int(uid) > 0
    words = [word for word, _ in final_stage()]
    assert words.index("USER") > max(at for at, word in enumerate(words) if word in ("RUN", "COPY"))
    [made] = [rest for word, rest in final_stage() if word == "RUN" and "useradd" in rest]
    assert f"--uid {uid} " in made


def test_stop_health_and_command_reach_the_program_without_a_shell() -> None:
    assert only("STOPSIGNAL") == "SIGTERM"
    command = [*json.loads(only("ENTRYPOINT")), *json.loads(only("CMD"))]
    assert command[0] == "upnextd"
    with (
        pytest.raises(click.exceptions.Exit) as ended,
        cli.make_context("upnextd", [*command[1:], "--help"]) as context,
    ):
        cli.invoke(context)
    assert ended.value.exit_code == 0
    health = only("HEALTHCHECK")
    assert json.loads(health[health.index("[") :]) == ["upnext", "ctl", "status"]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    kept = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    for word, rest in instructions():
        *sources, _ = shlex.split(rest)
        if word != "COPY" or sources[0].startswith("--from="):
            continue
        for source in sources:
            assert (ROOT / source).exists(), source
            assert source.removeprefix("./").split("/")[0] in kept, source


def test_the_image_has_extras_that_there_are() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [install] = [rest for word, rest in instructions() if word == "RUN" and "'/src[" in rest]
    extras = re.findall(r"'/src\[([\w,]+)\]'", install)[0].split(",")
    assert {"dashboard", "api"} <= set(extras) <= project["optional-dependencies"].keys()


def test_no_layer_and_no_file_holds_a_secret() -> None:
    named = [rest for word, rest in instructions() if word in ("ENV", "ARG", "LABEL", "RUN") and SECRET.search(rest)]
    assert not named
    for path in (DEPLOY / "compose.yaml", DEPLOY / "compose.secrets.yaml"):
        parsed = yaml.safe_load(path.read_text())
        for name, secret in parsed["secrets"].items():
            assert secret == {"file": f"./{name}"}, "where it is, and nothing of it"
        for service in parsed["services"].values():
            for value in service.get("environment", {}).values():
                assert not SECRET.search(value) or value == "/run/secrets", value
            assert not [word for word in service.get("command", []) if SECRET.search(word)]


def test_compose_gives_the_daemon_the_time_it_needs(worker: dict[str, Any]) -> None:
    grace = re.fullmatch(r"(\d+)s", worker["stop_grace_period"])
    assert grace
    assert int(grace[1]) >= float(worker["environment"]["UPNEXTD_STOP_TIMEOUT"]) + 10


def test_compose_builds_this_dockerfile_and_hands_it_no_privileges(worker: dict[str, Any]) -> None:
    context = (DEPLOY / worker["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / worker["build"]["dockerfile"]) == DEPLOY / "Dockerfile"
    assert worker["read_only"] is True
    assert worker["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in worker["security_opt"]
    written = dict(mount.partition(":")[::2] for mount in worker["tmpfs"])
    assert {"/tmp", "/run/upnext"} <= written.keys()
    assert f"uid={only('USER')}," in written["/run/upnext"]
    assert not {"privileged", "network_mode", "pid", "user", "ports"} & worker.keys()


def test_compose_names_real_variables_and_a_broker_that_drops_nothing(
    compose: dict[str, Any], worker: dict[str, Any]
) -> None:
    start = cli.commands["start"]
    variables = {option.envvar for option in start.params if isinstance(option, click.Option)} | {"UPNEXTD_REDIS_URL"}
    secrets = yaml.safe_load((DEPLOY / "compose.secrets.yaml").read_text())["services"]["worker"]["environment"]
    assert worker["environment"].keys() <= variables
    assert secrets.keys() <= {*variables, "CREDENTIALS_DIRECTORY"}
    assert secrets["UPNEXTD_REDIS_URL"] == "", "it would count before the file"
    host = re.search(r"://(\w+):", worker["environment"]["UPNEXTD_REDIS_URL"])
    assert host
    broker = compose["services"][host[1]]
    assert set(worker["depends_on"]) == {host[1]}
    assert re.search(r":\d", broker["image"]), "a version is named"
    assert broker["command"][-2:] == ["--maxmemory-policy", "noeviction"]
    volume = broker["volumes"][0].partition(":")[0]
    assert volume in compose["volumes"]


def test_compose_can_have_several_workers(worker: dict[str, Any]) -> None:
    """What belongs to one container alone would stop `up --scale worker=4`."""
    assert worker["deploy"]["replicas"] >= 2
    assert not {"container_name", "ports", "hostname"} & worker.keys()
    assert not [mount for mount in worker.get("volumes", ()) if "/var/lib/upnext" in mount], "a state for each"


def arguments(service: dict[str, Any]) -> list[str]:
    return [*service["entrypoint"], *service["command"]]


def parses(command: click.Command, words: list[str]) -> dict[str, Any]:
    """The options of a command line. Raises what click raises for one that is wrong."""
    with command.make_context(command.name, words, resilient_parsing=False) as context:
        return context.params


def test_compose_serves_the_dashboard_to_this_machine_alone(compose: dict[str, Any]) -> None:
    service = compose["services"]["dashboard"]
    words = arguments(service)
    assert words[:2] == ["upnext", "dashboard"]
    given = parses(dashboard, words[2:])
    assert given["listen"] == "0.0.0.0:8300"
    assert str(given["users_file"]) == f"/run/secrets/{service['secrets'][0]}", (
        "without users it would refuse that address"
    )
    assert service["ports"] == ["127.0.0.1:8300:8300"]
    assert service["profiles"], "it asks for a file that is not there from the beginning"
    assert ":8300/healthz" in service["healthcheck"]["test"][-1]
    assert service["read_only"] is True


def test_compose_has_a_place_for_an_api() -> None:
    """The comment is a service, once it is none."""
    text = (DEPLOY / "compose.yaml").read_text()
    commented = re.sub(r"^  # (?=api:|  )", "  ", text, flags=re.MULTILINE)
    service = yaml.safe_load(commented)["services"]["api"]
    words = arguments(service)
    given = parses(run, words[2:])
    assert given["only"] == ("front",)
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert "front=0.0.0.0:8000" in words
