"""Captions of the report's figures: what is drawn, of which split and metric, over how many seeds."""

import pandas as pd


def counts(rows: pd.DataFrame) -> str:
    """Return the number of seeds as in ``n = 5`` or ``n = 3 to 5``."""
    low, high = rows["n"].min(), rows["n"].max()
    return f"n = {low}" if low == high else f"n = {low} to {high}"


def scores(rows: pd.DataFrame) -> str:
    """Return the caption of a task's scores."""
    first = rows.iloc[0]
    return (
        f"Test {first['metric']} at the last weights on {first['task']}, {direction(rows)}, {_seeds(rows)}. Dots are seeds, "
        f"upright marks {kind_of_mean(rows)}s, bars 95 % intervals of the means; numbers behind names are the ranks that an activation "
        "may have. The dotted line is the baseline's mean. Bars that overlap may still differ: seeds are paired."
    )


def learning_curves(rows: pd.DataFrame) -> str:
    """Return the caption of a task's learning curves."""
    first = rows.iloc[0]
    return (
        f"Validation {first['metric']} ({direction(rows)}) and training loss on {first['task']} by epoch, {_seeds(rows)}. "
        "Lines are means over seeds, bands reach from the lowest seed to the highest. The baseline and the best seven "
        "others are in color, the rest in gray; axes leave out the worst of the first epochs."
    )


def step_time(rows: pd.DataFrame) -> str:
    """Return the caption of the scores against the time of a step."""
    return (
        f"{_mean(rows)} against the time of a training step relative to ReLU's in the same network. The line is the Pareto "
        "front, the gray band the noise of the time."
    )


def parameters(rows: pd.DataFrame) -> str:
    """Return the caption of the scores against the number of parameters."""
    return f"{_mean(rows)} against the number of parameters of the network. The line is the Pareto front."


def equal_time(rows: pd.DataFrame) -> str:
    """Return the caption of the validation scores by training time."""
    first = rows.iloc[0]
    return (
        f"Validation {first['metric']} ({direction(rows)}) on {first['task']} by training time in units of an epoch with ReLU, by the "
        f"measured time of a step; means, {_seeds(rows)}. The dotted line is where the fastest activation ends; "
        "schedules are not shortened."
    )


def _mean(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return f"{kind_of_mean(rows).capitalize()} test {first['metric']} ({direction(rows)}) on {first['task']} with its 95 % interval, {_seeds(rows)},"


def _seeds(rows: pd.DataFrame) -> str:
    return f"{counts(rows[rows['n'] > 0])} seeds"


def kind_of_mean(rows: pd.DataFrame) -> str:
    """Return the kind of the means of a task's scores, in words."""
    return "geometric mean" if rows["relative"].iloc[0] else "mean"


def direction(rows: pd.DataFrame) -> str:
    """Return which scores of a task are better, in words."""
    return "higher is better" if rows["higher_is_better"].iloc[0] else "lower is better"
