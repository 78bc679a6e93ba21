"""``fairpriv wandb-view``: a saved workspace and a report of a sweep that is on W&B."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fairpriv.earlier import known
from fairpriv.errors import InputError
from fairpriv.metrics import Metric, read_metric
from fairpriv.report.comparison import Comparison
from fairpriv.report.weights_and_biases import LONGEST, clipped
from fairpriv.result import Result

if TYPE_CHECKING:
    import wandb
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.reports.v2.interface import Panel
    from wandb_workspaces.workspaces import Workspace

log = logging.getLogger(__name__)

TABLES = ("generations", "decisions")  # that a cell logs
# What a fit logs, as STAGE/NAME.
CURVES = {
    "loss": "Training loss",
    "val_loss": "Validation loss",
    "val_accuracy": "Validation accuracy",
    "val_balanced_accuracy": "Validation balanced accuracy",
    "val_equalized_odds_gap": "Validation equalized-odds gap",
    "lambda": "Weight of the fairness penalty",
}
TIMEOUT = 20  # seconds
_WIDE = 24  # columns of a report


@dataclass(frozen=True)
class View:
    """The content to show of one group of runs.

    Attributes:
        group: name of the sweep, as far as W&B takes it.
        entity: owner of the project.
        project: project of the runs.
        runs: number of runs.
        keys: dotted config keys that distinguish cells, without their seed.
        columns: metrics of the table, by name.
        floors: average of a metric with nothing to find, by the metric.
        scatters: pairs of metrics, cost and protection.
        tables: names of logged tables.
        curves: what the fits log, by the title of their plot.
    """

    group: str
    entity: str
    project: str
    runs: int
    keys: list[str]
    columns: dict[str, Metric]
    floors: dict[str, str]
    scatters: list[tuple[str, str]]
    tables: list[str]
    curves: dict[str, list[str]]

    @classmethod
    def of(
        cls, group: str, entity: str, project: str, runs: Sequence[tuple[Mapping[str, Any], dict[str, Any]]]
    ) -> View:
        """Make the view from the config and the summary of every run."""
        table = Comparison.of([_result(config, summary) for config, summary in runs])
        return cls(
            clipped(group, LONGEST),
            entity,
            project,
            len(runs),
            ["dataset.name", "defense.name", *table.keys],
            table.columns,
            {metric: floor for metric in table.columns if (floor := f"{metric}_floor") in table.metrics},
            table.panels,
            [name for name in TABLES if any(name in summary for _, summary in runs)],
            curves({name for _, summary in runs for name in summary}),
        )

    def label(self, metric: str) -> str:
        """Write the metric's label, and which direction is better."""
        found = self.columns.get(metric, Metric(metric))
        return f"{found.title} {found.arrow}".strip()

    def sections(self) -> dict[str, list[Panel]]:
        """Return the panels by topic."""
        from wandb_workspaces.reports import v2 as wr

        scatters = [
            wr.ScatterPlot(
                title=f"{self.label(y)} against {self.label(x)}", x=wr.SummaryMetric(x), y=wr.SummaryMetric(y)
            )
            for x, y in self.scatters
        ]
        # With falling axes turned over, up is better on every axis of a metric.
        axes = [
            *(wr.ParallelCoordinatesPlotColumn(wr.Config(key), display_name=key) for key in self.keys),
            *(
                wr.ParallelCoordinatesPlotColumn(
                    wr.SummaryMetric(metric), display_name=self.label(metric), inverted=found.sign < 0 or None
                )
                for metric, found in self.columns.items()
            ),
        ]
        bars = [
            wr.BarPlot(
                title=f"{self.label(metric)}, beside its floor" if metric in self.floors else self.label(metric),
                metrics=[metric, *filter(None, [self.floors.get(metric)])],
                groupby_aggfunc="mean",
                groupby_rangefunc="stderr",
                max_runs_to_show=self.runs,
                max_bars_to_show=self.runs,
            )
            for metric in self.columns
        ]
        lines = [
            wr.LinePlot(
                title=title,
                x="trainer/global_step",  # W&B's own step counts on from one fit to the next
                y=keys,
                groupby_aggfunc="mean",
                groupby_rangefunc="stderr",
                max_runs_to_show=self.runs,
            )
            for title, keys in self.curves.items()
        ]
        wide = wr.Layout(w=_WIDE, h=9)
        found = {
            "Trade-off": scatters,
            "Parallel coordinates": [wr.ParallelCoordinatesPlot(columns=axes, layout=wide)],
            "Metrics": bars,
            "Training curves": lines,
            "Runs side by side": [wr.RunComparer(diff_only="split", layout=wide)],
            "Tables": [wr.WeavePanelSummaryTable(table_name=name, layout=wide) for name in self.tables],
        }
        return {title: panels for title, panels in found.items() if panels}

    def workspace(self) -> Workspace:
        """Build a saved view of the sweep's runs only, grouped where they differ only in their seed."""
        from wandb_workspaces import expr
        from wandb_workspaces import workspaces as ws

        return ws.Workspace(
            entity=self.entity,
            project=self.project,
            name=self.group,
            sections=[
                ws.Section(
                    name=title,
                    panels=panels,
                    is_open=True,
                    layout_settings=ws.SectionLayoutSettings(columns=1 if panels[0].layout.w == _WIDE else 3, rows=1),
                )
                for title, panels in self.sections().items()
            ],
            settings=ws.WorkspaceSettings(max_runs=max(10, self.runs)),
            runset_settings=ws.RunsetSettings(
                filters=[expr.Metric("Group") == self.group],
                groupby=[expr.Config(key) for key in self.keys],
                pinned_columns=["summary:status", *(f"summary:{metric}" for metric in self.columns)],
            ),
        )

    def report(self) -> Report:
        """Build a report: an explanation of what is measured, and the panels."""
        from wandb_workspaces import expr
        from wandb_workspaces.reports import v2 as wr

        runs = wr.Runset(
            entity=self.entity,
            project=self.project,
            name=self.group,
            filters=[expr.Metric("Group") == self.group],
            groupby=[f"config.{key}" for key in self.keys],
        )
        legend = "\n".join(f"- **{self.label(metric)}**: {found.meaning}" for metric, found in self.columns.items())
        blocks: list[Any] = [
            wr.P(f"{self.runs} runs. Cells that differ in their seed only are shown together: means, standard errors."),
            wr.MarkdownBlock(legend),
        ]
        for title, panels in self.sections().items():
            blocks += [wr.H2(title), wr.PanelGrid(runsets=[runs], panels=panels)]
        return wr.Report(
            entity=self.entity,
            project=self.project,
            title=self.group,
            description="Made by fairpriv wandb-view.",
            blocks=blocks,
            width="fluid",
        )


def curves(logged: Collection[str]) -> dict[str, list[str]]:
    """Sort the names of what fits log by the title of their plot; a fit is known by its training loss."""
    fits = sorted(name.removesuffix("/loss") for name in logged if name.endswith("/loss"))
    found = {title: [name for fit in fits if (name := f"{fit}/{kind}") in logged] for kind, title in CURVES.items()}
    return {title: names for title, names in found.items() if names}


def _result(config: Mapping[str, Any], summary: Mapping[str, Any]) -> Result:
    """Read a run's cell: the metrics that it describes, or those that an earlier version is known to log."""
    told = json.loads(summary.get("described") or "{}")
    described = {name: metric for name, one in told.items() if (metric := read_metric(name, one)) is not None}
    values = {name: float(value) for name, value in summary.items() if isinstance(value, int | float)}
    result = Result("", str(summary.get("status")), dict(config), {**values}, described)
    result.metrics = {name: value for name, value in values.items() if name in described or known(name)}
    return result


def wandb_view(group: str, project: str = "fairpriv", entity: str | None = None) -> int:
    """Save a workspace and a report of the runs of ``group``, and print their addresses.

    Raises:
        InputError: wandb-workspaces is not installed, nobody is logged in, or there is no such group.
        ConnectionError: W&B cannot be reached, or refuses.
    """
    try:
        import wandb_workspaces  # noqa: F401  an optional extra
    except ImportError:
        raise InputError("wandb-view: needs wandb-workspaces: pip install 'fairpriv[wandb-view]'") from None
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))  # it neither asks for a key nor prints lines of its own
    try:
        api = wandb.Api(timeout=TIMEOUT)
        owner = entity or str(api.default_entity)
        view = View.of(group, owner, project, _runs(api, f"{owner}/{project}", group))
        workspace, report = view.workspace().save(), view.report().save()
    except InputError:
        raise
    except wandb.errors.UsageError:
        raise InputError("wandb-view: W&B has no key: run `wandb login`, or set WANDB_API_KEY") from None
    except Exception as error:
        log.debug("wandb-view failed", exc_info=True)
        raise ConnectionError(
            f"wandb-view: W&B cannot be reached, or refuses; look at network and key: {' '.join(str(error).split())}"
        ) from None
    print(f"workspace: {workspace.url}\nreport: {report.url}")
    return 0


def _runs(api: wandb.Api, path: str, group: str) -> list[tuple[Mapping[str, Any], dict[str, Any]]]:
    """List config and summary of every run of the group that has logged a result, failed or not."""
    try:
        found = [
            (run.config, run.summary_metrics)
            for run in api.runs(path, filters={"group": clipped(group, LONGEST)}, per_page=100, lazy=False)
            if "status" in run.summary_metrics
        ]
    except ValueError as error:  # no such project
        raise InputError(f"wandb-view: {' '.join(str(error).split())}") from None
    if not found:
        raise InputError(
            f"wandb-view {group}: no run of that group has ended in {path}: name a sweep, as in outputs/sweeps, "
            "whose runs were sent by logger=wandb or `wandb sync outputs/wandb/offline-run-*`"
        )
    return found
