"""What goes to W&B, by a service of its own that keeps what the client sends."""

import gzip
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from fairpriv.report import wandb_view as module
from fairpriv.report import weights_and_biases
from fairpriv.report.finding import find_results

REPOSITORY = Path(__file__).parents[2]
PROJECT = {"id": "p", "internalId": "p", "name": "fairpriv", "entityName": "me", "entity": {"id": "e", "name": "me"}}


class Service:
    """As much of W&B as the client needs."""

    def __init__(self) -> None:
        self.runs: dict[str, SimpleNamespace] = {}
        self.artifacts: dict[str, SimpleNamespace] = {}
        self.views: list[dict[str, Any]] = []
        self.asked: list[str] = []  # operations, in their order
        self.away = False

    def run(self, name: str) -> SimpleNamespace:
        fresh = SimpleNamespace(name=name, config={}, summary={}, history=[], files={}, exits=[], attempts=0)
        return self.runs.setdefault(name, fresh)

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        name = re.search(r"(?:query|mutation)\s+(\w+)", query)[1]
        self.asked.append(name)
        return getattr(self, name, lambda _: {})(given)

    def Viewer(self, given):  # noqa: N802  names of operations
        return {"viewer": {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}", "teams": _edges()}}

    def GetDefaultEntity(self, given):  # noqa: N802
        return {"viewer": {"id": "u", "entity": "me"}}

    def RunResumeStatus(self, given):  # noqa: N802
        run = self.runs.get(given["name"])
        if run is None:
            return {"model": {**PROJECT, "bucket": None}}
        run.attempts += 1
        stored = {
            "id": f"id-{run.name}",
            "name": run.name,
            "displayName": run.displayName,
            "summaryMetrics": json.dumps(run.summary),
            "config": json.dumps(run.config),
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsTail": "[]",
            "tags": run.tags,
            "notes": None,
            "wandbConfig": json.dumps({"t": 1}),
        }
        return {"model": {**PROJECT, "bucket": stored}}

    def UpsertBucket(self, given):  # noqa: N802
        run = self.run(given["name"])
        for key in ("displayName", "groupName", "jobType", "tags", "project", "program", "host"):
            if given[key] is not None or not hasattr(run, key):
                setattr(run, key, given[key])
        run.config = json.loads(given["config"]) if given["config"] else run.config
        bucket = {"id": f"id-{run.name}", "name": run.name, "displayName": run.displayName, "config": given["config"]}
        return {"upsertBucket": {"bucket": {**bucket, "sweepName": None, "project": PROJECT}, "inserted": True}}

    def CreateRunFiles(self, given):  # noqa: N802
        files = [{"name": name, "uploadUrl": f"{self.url}/run/{given['run']}/{name}"} for name in given["files"]]
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}

    def ArtifactType(self, given):  # noqa: N802
        return {"project": {"artifact": None}}

    def CreateArtifact(self, given):  # noqa: N802
        given = given["input"]
        name = given["artifactCollectionName"]
        self.artifacts[name] = SimpleNamespace(
            type=given["artifactTypeName"], run=given["runName"], files={}, committed=False
        )
        return {"createArtifact": {"artifact": {"id": name, "state": "PENDING", "artifactSequence": {"id": "s"}}}}

    def CreateArtifactManifest(self, given):  # noqa: N802
        file = {"id": "f", "name": "m", "uploadUrl": f"{self.url}/manifest", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": file}}}

    def CreateArtifactFiles(self, given):  # noqa: N802
        nodes = [
            {
                "uploadUrl": f"{self.url}/artifact/{file['artifactID']}/{file['name']}",
                "uploadHeaders": [],
                "storagePath": "here",
                "uploadMultipartUrls": None,
                "artifact": {"id": file["artifactID"]},
            }
            for file in given["input"]["artifactFiles"]
        ]
        return {"createArtifactFiles": {"files": _edges(*nodes)}}

    def CommitArtifact(self, given):  # noqa: N802
        self.artifacts[given["artifactID"]].committed = True
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": ""}}}

    def Runs(self, given):  # noqa: N802
        chosen = [run for run in self.runs.values() if run.groupName == json.loads(given["filters"])["group"]]
        nodes = [
            {
                "id": f"id-{run.name}",
                "name": run.name,
                "displayName": run.displayName,
                "state": "finished",
                "tags": run.tags,
                "group": run.groupName,
                "config": json.dumps(run.config),
                "summaryMetrics": json.dumps(run.summary),
                "systemMetrics": "{}",
                "user": {"name": "me", "username": "me"},
                "historyLineCount": len(run.history),
                "historyKeys": None,
            }
            for run in chosen
        ]
        if given["project"] != PROJECT["name"]:
            return {"project": None}
        return {"project": {"internalId": "p", "runCount": len(nodes), "readOnly": False, "runs": _edges(*nodes)}}

    def GetProjects(self, given):  # noqa: N802
        node = {"__typename": "Project", **PROJECT, "createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False}
        node["user"] = None
        return {"models": _edges(node)}

    def ProjectInternalId(self, given):  # noqa: N802
        return {"project": PROJECT}

    def UpsertView2(self, given):  # noqa: N802
        self.views.append({**given, "spec": json.loads(given["spec"])})
        return {"upsertView": {"view": {"id": f"v{len(self.views)}", "name": given["name"]}, "inserted": True}}

    def upsertView(self, given):  # noqa: N802
        self.views.append({**given, "spec": json.loads(given["spec"])})
        view = {key: given[key] for key in ("type", "name", "displayName", "description", "spec")}
        told = {"id": f"v{len(self.views)}", **view, "project": PROJECT, "updatedAt": "2026-01-01T00:00:00Z"}
        return {"upsertView": {"view": told, "inserted": True}}

    def stream(self, name: str, sent: dict[str, Any]) -> None:
        """The history and the summary as they grow."""
        run = self.run(name)
        for file, part in sent.get("files", {}).items():
            rows = [json.loads(row) for row in part["content"] if row]
            if file == "wandb-history.jsonl":
                run.history[part["offset"] :] = rows
            elif file == "wandb-summary.json":
                run.summary = rows[-1]
        if sent.get("complete"):
            run.exits.append(sent["exitcode"])

    def put(self, path: str, content: bytes) -> None:
        kind, _, place = path.strip("/").partition("/")
        name, _, file = place.partition("/")
        if kind == "artifact":
            self.artifacts[name].files[file] = content
        elif kind == "run":
            self.runs[name].files[file] = content


def _edges(*nodes: dict[str, Any]) -> dict[str, Any]:
    page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
    return {"edges": [{"node": node, "cursor": ""} for node in nodes], "pageInfo": page}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: Service

    def log_message(self, *_):
        pass

    def do_POST(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            sent = gzip.decompress(sent)
        if self.service.away:
            return self._reply({}, 503)
        if self.path == "/graphql":
            asked = json.loads(sent)
            return self._reply({"data": self.service.answer(asked["query"], asked.get("variables") or {})})
        if self.path.endswith("/file_stream"):
            self.service.stream(self.path.split("/")[-2], json.loads(sent))
        return self._reply({"exitcode": None, "limits": {}})

    def do_PUT(self):
        self.service.put(self.path, self.rfile.read(int(self.headers.get("Content-Length", 0))))
        self._reply({})

    def _reply(self, told: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def service(monkeypatch, tmp_path, fairpriv) -> Iterator[Service]:
    """A running service that W&B takes for its own, in this process and in those that it starts."""
    found = Service()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"service": found}))
    server.handle_error = lambda *_: None  # a client that has hung up
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_port}"
    wandb.teardown()  # it reads the environment once
    monkeypatch.setenv("WANDB_BASE_URL", found.url)
    monkeypatch.setenv("WANDB_API_KEY", "hidden-key-" + "0" * 40)
    monkeypatch.setenv("WANDB_MODE", "online")
    weights_and_biases._warn_once.cache_clear()
    yield found
    server.shutdown()
    server.server_close()
    wandb.teardown()


@pytest.fixture
def logged(mine, tmp_path) -> list[str]:
    """The words of a small cell that is logged online."""
    folders = ["--config-dir", str(mine), f"paths.root={tmp_path / 'out'}"]
    return [*folders, "dataset=people", "training.epochs=2", "logger=wandb", "threads=1"]


def test_a_cell_arrives_with_its_numbers_goals_and_files(fairpriv, logged, service, tmp_path):
    ended = fairpriv("-m", *logged, "defense=none", "sweep=mine")
    assert ended.status == 0
    assert "W&B" not in ended.err
    (result,) = find_results([tmp_path / "out"])[0]
    (run,) = service.runs.values()
    assert (run.name, run.project, run.groupName, run.jobType) == (result.id, "fairpriv", "mine", "none")
    assert run.exits == [0]
    assert {name: run.summary[name] for name in result.metrics} == pytest.approx(result.metrics)
    assert run.summary["status"] == "completed"
    goals = {metric["1"]: metric["7"] for metric in run.config["_wandb"]["value"]["m"] if "1" in metric}
    assert goals["eval/accuracy"] == [2]  # the greatest value
    assert goals["fairness/equalized_odds_gap"] == [1]  # the least
    assert goals["privacy/below_tau"] == []
    trained = {name for row in run.history if "epoch" in row for name in row if name[0] != "_"}
    drawn = module.curves(run.summary)
    assert trained - {"epoch", "trainer/global_step"} == {name for names in drawn.values() for name in names} != set()
    sent = service.artifacts[f"result-{result.id}"]
    assert sent.committed
    assert sent.files["result.json"] == (tmp_path / "out" / "cells" / result.id / "result.json").read_bytes()
    assert b"hidden-key" not in b"".join([*run.files.values(), json.dumps(run.config).encode()])
    staged = tmp_path / "out" / "wandb" / "artifacts" / "staging"
    assert [path for path in staged.rglob("*") if path.is_file()] == []  # sent, and not left behind


def test_a_cell_that_is_run_again_goes_on_with_its_run(fairpriv, logged, service, tmp_path):
    failing = ["defense=fine_tune", "defense.epochs=2"]
    assert fairpriv(*logged, *failing, "defense.lr=1e30").status == 1
    (run,) = service.runs.values()
    assert run.exits == [1]
    assert run.summary["status"] == "failed"
    assert run.summary["error"] == find_results([tmp_path / "out"])[0][0].error
    assert fairpriv(*logged, *failing, "defense.lr=1e30").status == 1
    assert len(service.runs) == 1
    assert (run.attempts, run.exits) == (1, [1, 1])
    assert fairpriv(*logged, "defense=none").status == 0
    assert fairpriv(*logged, "defense=none", "retry=all").status == 0
    (other,) = (found for name, found in service.runs.items() if name != run.name)
    assert (other.attempts, other.exits) == (1, [0, 0])
    assert [row["_step"] for row in other.history] == [*range(len(other.history))]
    assert sum("eval/accuracy" in row for row in other.history) == 2
    (result,) = (found for found in find_results([tmp_path / "out"])[0] if found.status == "completed")
    assert {name: other.summary[name] for name in result.metrics} == pytest.approx(result.metrics)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # W&B leaves the agent's file open
def test_a_cell_that_wandb_s_agent_starts_reports_as_the_agent_s_run(fairpriv, logged, service, monkeypatch, tmp_path):
    asked = {"defense.penalty": 0.5, "dataset.missing_values": ["?", "n, a"], "dataset.name": "two words"}
    page = (REPOSITORY / "docs" / "how-to" / "sweeps.md").read_text()
    sweep = yaml.safe_load(re.search(r"```yaml\n(method: bayes.*?)```", page, re.DOTALL)[1])
    arguments = create_sweep_command_args({"args": {key: {"value": value} for key, value in asked.items()}})
    *words, given = create_sweep_command(sweep["command"])
    assert (words[:2], given) == (["fairpriv", "dataset=german"], "${args_no_hyphens}")
    assert {"logger=wandb", "retry=all"} <= set(words)
    parameters = tmp_path / "config.yaml"
    parameters.write_text(yaml.safe_dump({key: {"value": value} for key, value in asked.items()}))
    for name, value in {"SWEEP_ID": "s1", "RUN_ID": "asked1", "SWEEP_PARAM_PATH": str(parameters)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    ended = fairpriv(*words[2:], *logged, "defense.epochs=2", *arguments["args_no_hyphens"])
    assert ended.status == 0, ended.err
    (run,) = service.runs.values()
    (result,) = find_results([tmp_path / "out"])[0]
    assert run.name == "asked1"
    assert run.summary[sweep["metric"]["name"]] == result.metrics[sweep["metric"]["name"]]
    assert result.config["defense"]["penalty"] == 0.5
    assert (result.config["dataset"]["missing_values"], result.config["dataset"]["name"]) == (
        ["?", "n, a"],
        "two words",
    )


def test_a_service_that_goes_away_costs_no_result(fairpriv, logged, service, tmp_path, monkeypatch):
    monkeypatch.setattr(weights_and_biases, "PATIENCE", 1)
    monkeypatch.setattr(weights_and_biases, "RETRIES", 1)
    start = weights_and_biases.summarise

    def leaves(*args):
        start(*args)
        service.away = True

    monkeypatch.setattr("fairpriv.run.summarise", leaves)
    ended = fairpriv(*logged, "defense=none")
    assert ended.status == 0
    assert len([line for line in ended.err.splitlines() if line.startswith("W&B is left out: TimeoutError")]) == 1
    assert find_results([tmp_path / "out"])[0][0].status == "completed"


@pytest.fixture
def sent(service) -> Service:
    """A service that holds a sweep of six runs, one of them failed."""
    pytest.importorskip("wandb_workspaces")
    for defence in ("none", "fair_finetune"):
        for seed in range(3):
            run = service.run(f"{defence}-{seed}")
            run.displayName, run.tags, run.groupName = run.name, [], "mine"
            config = {"dataset": {"name": "people"}, "defense": {"name": defence}, "seed": seed}
            run.config = {key: {"value": value} for key, value in config.items()}
            run.summary = {"eval/accuracy": 0.8, "privacy/accuracy_gap": 0.1, "privacy/shift_weight": 1.0}
            run.summary["privacy/accuracy_gap_floor"] = 0.02
            run.summary |= {
                "status": "completed",
                "_step": 3,
                "seconds/base": 1.5,
                "base/loss": 0.4,
                "base/val_loss": 0.5,
                f"{defence}/loss": 0.3,
                "decisions": {"_type": "table-file"},
            }
    run.summary = {"status": "failed", "error": "ValueError: no"}
    service.run("not of it").groupName = "another"
    return service


def test_a_view_is_of_a_group_by_the_name_that_its_runs_have():
    sweep = "x" * (weights_and_biases.LONGEST + 1)
    config = {"dataset": {"name": "german"}, "defense": {"name": "none"}, "seed": 0, "task": "classifier"}
    view = module.View.of(sweep, "me", "fairpriv", [(config, {"status": "completed", "eval/accuracy": 0.5})])
    assert view.group == weights_and_biases.clipped(sweep, weights_and_biases.LONGEST)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between wandb-workspaces and pydantic
def test_wandb_view_saves_a_workspace_and_a_report(sent, fairpriv):
    ended = fairpriv("wandb-view", "mine")
    assert ended.status == 0
    assert ended.err == ""
    workspace, report = sent.views
    name = workspace["name"].removeprefix("nw-").removesuffix("-v")
    assert ended.out.splitlines() == [
        f"workspace: {sent.url}/me/fairpriv?nw={name}",
        f"report: {sent.url}/me/fairpriv/reports/mine--v2",
    ]
    assert (workspace["type"], workspace["entityName"], workspace["projectName"]) == ("project-view", "me", "fairpriv")
    section = workspace["spec"]["section"]
    (runs,) = section["runSets"]
    (chosen,) = runs["filters"]["filters"]
    assert (chosen["key"], chosen["op"], chosen["value"]) == ({"section": "run", "name": "group"}, "=", "mine")
    assert [key["name"] for key in runs["grouping"]] == ["dataset.value.name", "defense.value.name"]
    panels = {part["name"]: part["panels"] for part in section["panelBankConfig"]["sections"]}
    assert {name: [panel["viewType"] for panel in found] for name, found in panels.items()} == {
        "Trade-off": ["Scatter Plot"],
        "Parallel coordinates": ["Parallel Coordinates Plot"],
        "Metrics": ["Bar Chart", "Bar Chart"],
        "Training curves": ["Run History Line Plot", "Run History Line Plot"],
        "Runs side by side": ["Run Comparer"],
        "Tables": ["Weave"],
    }
    scatter = panels["Trade-off"][0]["config"]
    assert (scatter["xAxis"], scatter["yAxis"]) == ("summary:eval/accuracy", "summary:privacy/accuracy_gap")
    axes = panels["Parallel coordinates"][0]["config"]["columns"]
    assert [(axis["accessor"], axis.get("inverted")) for axis in axes] == [
        ("config:dataset.value.name", None),
        ("config:defense.value.name", None),
        ("summary:eval/accuracy", None),
        ("summary:privacy/accuracy_gap", True),  # less is better, and up is better
    ]
    assert [panel["config"]["metrics"] for panel in panels["Metrics"]] == [
        ["eval/accuracy"],
        ["privacy/accuracy_gap", "privacy/accuracy_gap_floor"],
    ]
    assert [(panel["config"]["xAxis"], panel["config"]["metrics"]) for panel in panels["Training curves"]] == [
        ("trainer/global_step", ["base/loss", "fair_finetune/loss", "none/loss"]),
        ("trainer/global_step", ["base/val_loss"]),
    ]
    assert (report["type"], report["displayName"]) == ("runs", "mine")
    grids = [block for block in report["spec"]["blocks"] if block["type"] == "panel-grid"]
    shown = [[panel["viewType"] for panel in grid["metadata"]["panelBankSectionConfig"]["panels"]] for grid in grids]
    assert shown == [[panel["viewType"] for panel in found] for found in panels.values()]
    assert all(grid["metadata"]["runSets"][0]["filters"]["filters"][0]["value"] == "mine" for grid in grids)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["theirs"], "no run of that group has ended in me/fairpriv"),
        (["mine", "--project", "nowhere"], "Could not find project nowhere"),
        ([], "the command is wandb-view GROUP"),
    ],
)
def test_wandb_view_says_in_one_line_what_is_missing(sent, fairpriv, words, told):
    ended = fairpriv("wandb-view", *words)
    assert (ended.status, ended.out) == (2, "")
    assert len(ended.err.splitlines()) == 1
    assert told in ended.err
    assert sent.views == []


def test_wandb_view_without_key_network_or_extra_says_what_to_do(service, fairpriv, monkeypatch, tmp_path):
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setattr(module, "TIMEOUT", 1)
    service.away = True
    ended = fairpriv("wandb-view", "mine")
    assert ended.status == 1
    assert ended.err.startswith("fairpriv: wandb-view: W&B cannot be reached, or refuses; look at network and key: ")
    assert len(ended.err.splitlines()) == 1
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    ending = threading.Thread(target=wandb.teardown, daemon=True)  # forgets the key at once
    ending.start()
    ending.join(5)  # W&B's own process may ask its server again and again before it ends
    told = "fairpriv: wandb-view: W&B has no key: run `wandb login`, or set WANDB_API_KEY\n"
    ended = fairpriv("wandb-view", "mine")
    assert (ended.status, ended.err) == (2, told)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    told = "fairpriv: wandb-view: needs wandb-workspaces: pip install 'fairpriv[wandb-view]'\n"
    ended = fairpriv("wandb-view", "mine")
    assert (ended.status, ended.err) == (2, told)
