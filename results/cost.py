"""What a score costs: time of a step, memory and parameters beside it, and who is ahead when time is up."""

import math

import pandas as pd

from results.escape import markdown, markdown_table

EXPLANATION = """\
Times are those of a whole training step, or of inference, relative to the same network with ReLU, measured in turns in one process; a
ratio closer to 1 than the noise is none. At equal time: validation scores where the activation whose run ends first
ends, by epochs times step ratio, so that the load of a machine does not matter. Learning-rate schedules were not shortened, which is
to the disadvantage of slow activations. Bold: no other activation has a better mean at no higher cost.
"""


def cost_table(rows: pd.DataFrame, cells: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """One row for each activation with a score, in the order of ``rows``.

    Args:
        rows: of the leaderboard, one task's.
        cells: the records of that task that are ``ok``.
        metrics: of these cells; see ``results.collect.read_metrics``.

    Returns:
        ``activation``, ``mean``, ``step_ratio``, ``inference_ratio``, ``cost_floor``, ``saved_mb``, ``peak_memory_mb``,
        ``parameters``, ``front`` and ``parameters_front`` (whether no other has a better mean at no higher step time, or
        number of parameters), ``epochs_at_equal_time``, ``val_at_equal_time``, ``val_at_end``.
    """
    rows = rows[rows["n"] > 0].reset_index(drop=True)
    table = rows[
        ["activation", "mean", "step_ratio", "inference_ratio", "cost_floor", "peak_memory_mb", "parameters"]
    ].copy()
    table.insert(5, "saved_mb", rows["saved_bytes"] / 1e6)
    higher = bool(rows["higher_is_better"].iloc[0]) if len(rows) else True
    table["front"] = pareto_front(rows["step_ratio"], rows["mean"], higher)
    table["parameters_front"] = pareto_front(rows["parameters"], rows["mean"], higher)
    curves = validation_curves(rows, cells, metrics)
    end = equal_time(rows, curves)
    reached = []
    for label, ratio in zip(rows["activation"], rows["step_ratio"], strict=True):
        curve = curves.get(label)
        epochs = math.nan if curve is None else math.floor(end / ratio + 1e-9)  # of the last epoch in time
        value = math.nan
        if curve is not None and epochs > 0:
            value = curve[curve.index < epochs].iloc[-1]
        reached.append((epochs, value, math.nan if curve is None else curve.iloc[-1]))
    columns = ["epochs_at_equal_time", "val_at_equal_time", "val_at_end"]
    return table.join(pd.DataFrame(reached, columns=columns, dtype=float))


def validation_curves(rows: pd.DataFrame, cells: pd.DataFrame, metrics: pd.DataFrame) -> dict[str, pd.Series]:
    """Mean validation score over seeds by epoch, of each activation whose step was timed."""
    metric = str(rows["metric"].iloc[0]) if len(rows) else ""
    if not {"split", "epoch", metric} <= set(metrics.columns):
        return {}
    val = metrics[metrics["split"] == "val"].merge(cells[["folder", "activation_label"]], on="folder")
    timed = set(rows["activation"][rows["step_ratio"].notna()])
    return {
        str(label): curve.groupby("epoch")[metric].mean()
        for label, curve in val.groupby("activation_label")
        if label in timed
    }


def equal_time(rows: pd.DataFrame, curves: dict[str, pd.Series]) -> float:
    """When the first activation has trained all its epochs, in the time that an epoch takes with ReLU; NaN if none is timed."""
    ratios = dict(zip(rows["activation"], rows["step_ratio"], strict=True))
    return min(((curve.index[-1] + 1) * ratios[label] for label, curve in curves.items()), default=math.nan)


def pareto_front(cost: pd.Series, score: pd.Series, higher_is_better: bool) -> pd.Series:
    """Whether no other row has a better score at no higher cost, or the same at a lower one.

    A row without cost or score is on no front.

    Examples:
        >>> import pandas as pd
        >>> pareto_front(pd.Series([1.0, 1.2, 1.1]), pd.Series([98.0, 99.0, 97.0]), True).tolist()
        [True, True, False]
    """
    value = score if higher_is_better else -score
    on_it = [
        not (((value > v) & (cost <= c)) | ((value >= v) & (cost < c))).any()
        for c, v in zip(cost, value, strict=True)
    ]
    return pd.Series(on_it, index=cost.index, dtype=bool) & cost.notna() & score.notna()


def to_markdown(task: str, table: pd.DataFrame) -> str:
    """The section of a task in leaderboard.md; empty if nothing was measured."""
    if table["step_ratio"].isna().all():
        return ""
    heads = ["activation", "step time", "inference time", "noise", "saved MB", "peak MB", "parameters"]
    heads += ["epochs at equal time", "validation then", "at its end"]
    rows = []
    for row in table.itertuples():
        cells = [
            markdown(row.activation),
            _bold(f"{row.step_ratio:.2f}", row.front),
            f"{row.inference_ratio:.2f}",
            f"{row.cost_floor:.2f}",
            f"{row.saved_mb:.3g}",
            f"{row.peak_memory_mb:.3g}",
            _bold(f"{row.parameters:.0f}", row.parameters_front),
            f"{row.epochs_at_equal_time:.0f}",
            f"{row.val_at_equal_time:.4g}",
            f"{row.val_at_end:.4g}",
        ]
        rows.append(["" if cell == "nan" else cell for cell in cells])
    return "\n".join([f"## Cost on {markdown(task)}", "", *markdown_table(heads, "lrrrrrrrrr", rows), ""])


def _bold(text: str, bold: bool) -> str:
    return f"**{text}**" if bold else text
