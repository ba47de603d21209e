"""my_plugin keeps what rlkit asks of a noise, and acts as often as it says."""

from __future__ import annotations

from rlkit.conformance import check_noise
from rlkit.interfaces.rewards import SampleKey
from rlkit.scoring.noise import Coin

from my_plugin import MyPlugin


def test_it_keeps_the_contract() -> None:
    check_noise(MyPlugin)


def test_it_acts_as_often_as_it_says() -> None:
    noise, coin = MyPlugin(prob=0.25), Coin(seed=7, layer=0)
    keys = [SampleKey(f"prompt{i}", 1, 0, 0) for i in range(4000)]
    lost = sum(noise(1.0, key, coin, (0.0, 1.0)) == 0.0 for key in keys)
    assert 0.2 < lost / len(keys) < 0.3
