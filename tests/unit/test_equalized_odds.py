"""The torchmetrics metric, against fairlearn and against the function on all rows together."""

import lightning
import numpy as np
import pytest
import torch
from fairlearn.metrics import equalized_odds_difference
from torch.utils.data import DataLoader, TensorDataset

from fairpriv import EqualizedOddsGap, equalized_odds_gap
from fairpriv.trainer import EXPECTED_WARNINGS


def rows(groups: int, classes: int = 2, count: int = 400):
    draw = np.random.default_rng(groups)
    return draw.integers(classes, size=count), draw.integers(classes, size=count), draw.integers(groups, size=count)


@pytest.mark.parametrize("groups", [2, 3, 5])
def test_batches_together_give_fairlearns_difference(groups):
    preds, target, s = rows(groups)
    metric = EqualizedOddsGap(groups)
    for part in np.array_split(np.arange(len(preds)), 7):
        metric.update(preds[part], torch.tensor(target[part]), s[part].tolist())
    wanted = equalized_odds_difference(target, preds, sensitive_features=s)
    assert float(metric.compute()) == pytest.approx(wanted, abs=1e-12)
    metric.reset()
    metric.update(target, target, s)
    assert metric.compute() == 0


def test_several_classes_give_the_gap_of_the_function():
    preds, target, s = rows(3, classes=4)
    metric = EqualizedOddsGap(3, classes=4)
    metric.update(preds, target, s)
    assert metric.compute() == equalized_odds_gap(preds, target, s) > 0


def test_a_batch_may_lack_classes_and_groups():
    preds, target, s = rows(3, classes=4)
    metric, order = EqualizedOddsGap(3, classes=4), target.argsort(kind="stable")
    for part in np.split(order, 8):
        metric.update(preds[part], target[part], s[part])
    assert metric.compute() == equalized_odds_gap(preds, target, s)
    alone = EqualizedOddsGap(1)
    alone.update([0, 1, 1], [1, 1, 0], [0, 0, 0])
    assert alone.compute() == 0


def test_a_cell_without_rows_raises_or_is_skipped():
    preds, target, s = [0, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 0]
    metric = EqualizedOddsGap(3)  # group 2 has no rows at all, and group 1 none of label 0
    metric.update(preds, target, s)
    with pytest.raises(ValueError, match=r"no rows in \(label 0, group 1\); missing='skip'"):
        metric.compute()
    metric = EqualizedOddsGap(3, missing="skip")
    metric.update(preds, target, s)
    with pytest.warns(UserWarning, match=r"having no rows: \(label 0, group 1\)"):
        assert metric.compute() == 0.5


def test_no_rows_and_wrong_codes_are_errors():
    metric = EqualizedOddsGap(2)
    with pytest.raises(ValueError, match="groups holds codes 0 to 2, outside 0 to 1"):
        metric.update([0, 1], [0, 1], [0, 2])
    with pytest.raises(ValueError, match="target holds codes 0 to 2, outside 0 to 1"):
        metric.update([0, 1], [0, 2], [0, 1])
    with pytest.raises(ValueError, match="missing='never'"):
        EqualizedOddsGap(2, missing="never")
    for groups, classes in ((0, 2), (2, 1)):
        with pytest.raises(ValueError, match="at least 1 group and 2 classes"):
            EqualizedOddsGap(groups, classes=classes)
    metric._update_count = 1  # torchmetrics itself would only warn
    with pytest.raises(ValueError, match="there are no rows"):
        metric.compute()


@pytest.mark.filterwarnings(*(f"ignore:{text}" for text in EXPECTED_WARNINGS))
def test_a_lightning_module_logs_it_over_an_epoch(tmp_path):
    preds, target, s = map(torch.tensor, rows(2))

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.gap = EqualizedOddsGap(2)

        def validation_step(self, batch, _):
            self.gap(*batch)
            self.log("gap", self.gap, on_epoch=True, on_step=False)

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet)
    loader = DataLoader(TensorDataset(preds, target, s), batch_size=90)
    (logged,) = trainer.validate(Module(), loader, verbose=False)
    assert logged["gap"] == pytest.approx(float(equalized_odds_gap(preds, target, s)), abs=1e-6)
