"""What one run's numbers come to: plain numpy in float64, so that all who sum up a run agree.

A metric is measured at ascending `steps` [n], and is `values` [n] there. `last` is the last step that counts: what was
measured after it does not. Steps of training are 1..last; at step 0 there may have been an evaluation.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def tenth(last: int) -> int:
    """Steps in a tenth of a run of `last` steps: rounded, halves to the even number, and at least one."""
    return max(1, round(last / 10))


def last_tenth(steps: ArrayLike, last: int) -> slice:
    """Which measurements speak for the end of the run: those in the last tenth of the steps 1..last; where nothing was
    measured there, the last one before. Empty where there is none at all: what was measured at step 0 says nothing of
    training."""
    at = np.asarray(steps)
    end = int(np.searchsorted(at, last, side="right"))
    begin = int(np.searchsorted(at, last - tenth(last), side="right"))
    first = int(np.searchsorted(at, min(last, 1)))
    return slice(min(end, max(first, min(begin, end - 1))), end)


def final_value(steps: ArrayLike, values: ArrayLike, last: int) -> float:
    """The mean of the `last_tenth`; NaN where nothing was measured up to `last` (but at step
    0)."""
    tail = _floats(values)[last_tenth(steps, last)]
    return float(tail.mean()) if len(tail) else math.nan


def stretches(
    steps: ArrayLike, values: ArrayLike, last: int, width: int | None = None
) -> tuple[NDArray[np.int64], Array]:
    """The mean of what was measured in each stretch of the run: (first step [m], mean [m]). `width`: steps in one;
    None: a tenth of the run.

    A stretch begins at each measurement that has a whole one after it, and the run's last `width` steps are one too;
    those in which nothing was measured are left out. What one step shows may be chance; what a stretch shows is less
    so.
    """
    at, numbers = np.asarray(steps, dtype=np.int64), _floats(values)
    width = tenth(last) if width is None else width
    begins = np.unique(np.append(at[at <= last - width], last - width + 1))
    low, high = np.searchsorted(at, begins), np.searchsorted(at, begins + width - 1, side="right")
    there = high > low
    return begins[there], _means(numbers, low[there], high[there])


def tenths(steps: ArrayLike, values: ArrayLike, last: int) -> list[float]:
    """The mean of each tenth of the run, in order. The last is the `final_value`; what is before it is cut evenly, and
    a part in which nothing was measured is left out. A run of fewer than ten steps has as many parts as steps."""
    at, numbers = np.asarray(steps), _floats(values)
    before = min(10, last) - 1
    cuts = np.array([(last - tenth(last)) * part // max(1, before) for part in range(before + 1)])
    edges = np.searchsorted(at, cuts, side="right")
    means = [float(numbers[a:b].mean()) for a, b in itertools.pairwise(edges) if b > a]
    final = final_value(at, numbers, last)
    return means if math.isnan(final) else [*means, final]


def area(steps: ArrayLike, values: ArrayLike, last: int) -> float:
    """Area under the curve by the trapezoid rule up to step `last`, divided by its length: the curve's mean height,
    in the metric's own unit. A single point is its own mean; NaN without any."""
    at, numbers = _up_to(steps, values, last)
    if len(at) < 2:
        return float(numbers[0]) if len(numbers) else math.nan
    return float(np.trapezoid(numbers, at) / (at[-1] - at[0]))


def smoothing_window(points: int) -> int:
    """Points that a curve is averaged over before it is held against a threshold: a twentieth of them."""
    return max(1, points // 20)


def smoothed(values: Array, window: int) -> Array:
    """Mean of each value and the `window` - 1 before it, [n - window + 1]: it uses nothing that came later."""
    return np.asarray(np.lib.stride_tricks.sliding_window_view(values, window).mean(axis=-1))


def first_reaching(steps: ArrayLike, values: ArrayLike, threshold: float, last: int) -> float:
    """The first step at which the smoothed curve is at `threshold` or above; inf where it never is up to `last`."""
    at, numbers = _up_to(steps, values, last)
    if len(numbers) == 0:
        return math.inf
    window = smoothing_window(len(numbers))
    reached = np.flatnonzero(smoothed(numbers, window) >= threshold)
    return float(at[reached[0] + window - 1]) if len(reached) else math.inf


def drawing_window(points: int) -> int:
    """Points, an odd number, that a noisy curve is averaged over to be drawn: about a sixteenth of them."""
    return 2 * (points // 32) + 1


def running_mean(values: ArrayLike, window: int) -> list[float]:
    """Mean over an odd window around each value, as far as it lies within the run."""
    numbers = _floats(values)
    at = np.arange(len(numbers))
    means = _means(numbers, np.maximum(0, at - window // 2), np.minimum(len(numbers), at + window // 2 + 1))
    return [float(mean) for mean in means]


def _floats(values: ArrayLike) -> Array:
    return np.asarray(values, dtype=np.float64)


def _up_to(steps: ArrayLike, values: ArrayLike, last: int) -> tuple[Any, Array]:
    at = np.asarray(steps)
    return at[at <= last], _floats(values)[at <= last]


def _means(values: Array, low: NDArray[np.int64], high: NDArray[np.int64]) -> Array:
    """Mean of values[low:high] for each pair; none is empty. Each is summed by itself: differences of running totals
    would tell equal stretches apart by rounding."""
    if len(low) == 0:
        return np.zeros(0)
    # reduceat takes no end beyond the last value, and gives what lies between two pairs too.
    sums = np.add.reduceat(np.append(values, 0.0), np.column_stack([low, high]).ravel())[::2]
    return np.asarray(sums / (high - low))
