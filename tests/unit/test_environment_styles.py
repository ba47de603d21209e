"""Environments written for other projects, each the way that project's documentation writes them, used unchanged."""

from __future__ import annotations

import json
import re
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from rlkit import config as configs
from rlkit import registry
from rlkit.config.sections import EnvironmentRef
from rlkit.errors import ConfigError, RlkitError
from rlkit.interfaces.declarations import environment_declaration
from rlkit.interfaces.environments import Observation, Task

TRL = '''
    import asyncio
    import random

    class Stairs:
        def reset(self, target=None, **kwargs) -> str | None:
            self.floor, self.given = 0, kwargs
            self.target = random.randint(1, 6) if target is None else target
            return None if target is not None else f"Climb to floor {self.target}."

        def get_reward(self) -> float:
            return float(self.floor == self.target)

        def climb(self, floors: int) -> int:
            """
            Climb the stairs.

            Args:
                floors: How many.

            Returns:
                The floor.
            """
            if floors > 5:
                raise ValueError("No such floor.")
            self.floor += floors
            return self.floor

        def _hidden(self):
            pass

    class Async(Stairs):
        def __init__(self):
            self.loops = set()

        async def get_reward(self):
            self.loops.add(asyncio.get_running_loop())
            return len(self.loops)

        async def climb(self, floors: int) -> int:
            """
            Climb the stairs.

            Args:
                floors: How many.
            """
            self.loops.add(asyncio.get_running_loop())
            await asyncio.sleep(0)
            return super().climb(floors)

    class Unrewarded(Stairs):
        get_reward = None

    class NeedsAColumn(Stairs):
        def reset(self, difficulty):
            self.floor = self.target = 0

    class Numbers(Stairs):
        def reset(self, **kwargs):
            return 3

    class Graded(Stairs):
        def get_reward(self):
            return "good"

    class NoHints:
        def reset(self, **kwargs):
            pass

        def move(self, where):
            """
            Move.

            Args:
                where: there
            """

    class NoTools:
        def reset(self, **kwargs):
            pass

        def get_reward(self):
            return 1.0
'''

GYM = """
    import random

    class GuessEnv:  # gymnasium.Env, where that is installed
        range = (0.0, 1.0)

        def __init__(self, highest=9, tries=3):
            self.highest, self.tries = highest, tries

        def reset(self, *, seed=None, options=None):
            self.left = self.tries
            self.number = int(options["answer"]) if options["answer"] else random.Random(seed).randint(0, self.highest)
            return f"A number from 0 to {self.highest}?", {"level": options.get("level")}

        def step(self, action):
            self.left -= 1
            guess = int(action)
            if guess == self.number:
                return "right", 1.0, True, False, {}
            return "higher" if guess < self.number else "lower", 0, False, self.left == 0, {"left": self.left}

    class Numpy(GuessEnv):
        def step(self, action):
            import numpy as np
            return np.str_("no"), np.float32(0.5), np.bool_(True), np.bool_(False), {"at": np.arange(2), "of": GuessEnv}

    class Old(GuessEnv):
        def step(self, action):
            return "no", 0.0, True, {}

    class Pictures(GuessEnv):
        def reset(self, *, seed=None, options=None):
            return [[0, 1]], {}

    class Flagless(GuessEnv):
        def step(self, action):
            return "no", 0.0, "yes", False, {}

    class Unpaid(GuessEnv):
        def step(self, action):
            return "no", "high", True, False, {}

    class Bare(GuessEnv):
        def reset(self):
            return "begin"

    def make(id, **kwargs):
        return {"Guess-v0": GuessEnv}[id](**kwargs)

    def handles_signals():
        import signal
        signal.signal(signal.SIGINT, lambda *_: None)
        return GuessEnv()

    class Own:
        def start(self, task, seed): ...
        def step(self, action): ...

    class Neither:
        def play(self): ...

    number = 3
"""

TEXTARENA = """
    class Wordle:
        def reset(self, num_players, seed=None):
            assert num_players == 1
            self.said, self.guesses = ["[GAME] You play Wordle."], []

        def get_observation(self):
            return 0, "\\n" + "\\n".join(self.said)  # all of it, as its wrapper for models has it

        def step(self, action):
            self.guesses.append(action)
            self.said += [f"[Player 0] {action}", f"[GAME] X G Y X X ({len(self.guesses)})"]
            return "crane" in action or len(self.guesses) == 3, {"invalid": False}

        def close(self):
            return {0: 1 if "crane" in self.guesses[-1] else 0.25}, {0: {"reason": "over", "turns": len(self.guesses)}}

    class Raw(Wordle):
        def get_observation(self):
            new, self.said = self.said, []
            return 0, [(-1, text, "GAME_MESSAGE") for text in new]

    class Unrewarded(Wordle):
        def close(self):
            return None
"""

SKYRL = """
    import re

    class BaseTextEnv:  # skyrl_gym's, where that is installed
        def __init__(self):
            self.turns, self.max_turns = 0, 1

        def init(self, prompt):
            return prompt, {}

        def close(self):
            pass

        def get_metrics(self):
            return {}

    class Multiply(BaseTextEnv):
        def __init__(self, env_config={}, extras={}):
            super().__init__()
            self.wanted = extras["reward_spec"]["ground_truth"]
            self.max_turns = extras.get("max_turns", 5)
            self.partial = env_config.get("partial", 0.5)
            self.level = extras.get("level")

        def step(self, action):
            self.turns += 1
            found = re.search(r"boxed\\{(.+?)\\}", action)
            right = found is not None and found[1] == self.wanted
            done = right or self.turns >= self.max_turns
            reward = (1.0 if right else self.partial if found else 0.0) if done else 0.0
            again = [] if done else [{"role": "user", "content": "Try again."}]
            return {"observations": again, "reward": reward, "done": done, "metadata": {"level": self.level}}

        def get_metrics(self):
            return {"steps": self.turns, "what": "multiply"}

        def close(self):
            closed.append(self.turns)

    closed = []

    def make(id, **kwargs):
        return {"multiply": Multiply}[id](**kwargs)

    class Wants(Multiply):
        def __init__(self, tokenizer, extras):
            super().__init__({}, extras)

    class WithConfig(Multiply):
        def __init__(self, env_config, extras):
            self.tone = env_config.tone
            super().__init__(env_config, extras)

        def init(self, prompt):
            return [*prompt, {"role": "user", "content": self.tone}], {"tone": self.tone}

    class Rewrites(Multiply):
        def init(self, prompt):
            return [{"role": "system", "content": "Be brief."}, *prompt], {}

    class Cuts(Multiply):
        def step(self, action):
            return {"observations": [], "reward": 0.0, "done": True, "postprocessed_action": action[:1], "metadata": {}}

    class Forgets(Multiply):
        def step(self, action):
            return {"observations": [], "reward": 0.0}

    class Nothing(Multiply):
        def step(self, action):
            pass

    class Mute(Multiply):
        def step(self, action):
            return {"observations": ["again"], "reward": 0.0, "done": False, "metadata": {}}
"""

VERIFIERS = """
    import verifiers as vf

    async def won(state) -> float:
        return 1.0 if state["won"] else 0.0

    def brevity(completion) -> float:
        return 1 / len([m for m in completion if m["role"] == "assistant"])

    def turns(state) -> float:
        return len(state["trajectory"])

    class Guessing(vf.MultiTurnEnv):
        async def setup_state(self, state):
            state["won"], state["number"] = False, int(state["answer"])

        @vf.stop
        async def has_won(self, state) -> bool:
            if state["trajectory"]:
                state["won"] = state["trajectory"][-1]["completion"][-1]["content"] == state["answer"]
            return state["won"]

        async def env_response(self, messages, state):
            said = messages[-1]["content"]
            if said == "resign":
                state["final_env_response"] = [{"role": "user", "content": "A pity."}]
                return state["final_env_response"]
            return [{"role": "user", "content": "higher" if int(said) < state["number"] else "lower"}]

    def load_environment(max_turns=3):
        rubric = vf.Rubric(funcs=[won, brevity], weights=[1.0, 0.1])
        rubric.add_metric(turns)
        return Guessing(dataset=None, rubric=rubric, max_turns=max_turns)

    async def correct_answer(completion, answer, info) -> float:
        return info.get("worth", 1.0) * (answer in completion[-1]["content"])

    def one_turn():
        return vf.SingleTurnEnv(dataset=None, rubric=vf.Rubric(funcs=[correct_answer]))

    def truncated(state) -> float:
        return float(state["is_truncated"])

    def patient():
        rubric = vf.Rubric(funcs=[correct_answer, won, truncated], weights=[1.0, 0.5, 0.0])
        return Guessing(dataset=None, rubric=rubric)

    class Announces(Guessing):
        async def setup_state(self, state):
            await super().setup_state(state)
            state["prompt"] = [*state["prompt"], {"role": "user", "content": "0 to 9."}]

    class Forgets(Guessing):
        async def get_prompt_messages(self, state):
            return (await super().get_prompt_messages(state))[-1:]

    class Vague(Guessing):
        async def get_prompt_messages(self, state):
            return None

    def add(a: int, b: int) -> int:
        'Adds.'
        return a + b

    def calculating():
        return vf.ToolEnv(dataset=None, tools=[add], rubric=vf.Rubric(funcs=[correct_answer]))

    def diversity(completions) -> list[float]:
        return [0.0 for _ in completions]

    def in_groups():
        return Guessing(dataset=None, rubric=vf.Rubric(funcs=[diversity]))
"""


def build(path: Path, name: str, **options: Any) -> Any:
    return registry.build("environments", "class", {"path": str(path), "name": name, **options})


def task(answer: str = "7", question: Any = "3+4=", **columns: Any) -> Task:
    return Task(question=question, answer=answer, gold=answer, columns=columns)


def played(env: Any, *turns: str) -> list[Observation]:
    return [env.start(task(), 0), *(env.step(turn) for turn in turns)]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "libraries"))
    for name, text in (("trl", TRL), ("gym", GYM), ("textarena", TEXTARENA), ("skyrl", SKYRL), ("vf", VERIFIERS)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    yield tmp_path
    for name in ("verifiers", "verifiers.types"):
        sys.modules.pop(name, None)


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def test_trl(file: Path) -> None:
    env = build(file / "trl.py", "Stairs")
    (schema,) = env.tools
    assert schema["function"]["name"] == "climb"
    assert schema["function"]["parameters"]["properties"] == {"floors": {"type": "integer", "description": "How many."}}
    assert env.start(task("4", target=4), 0) == Observation()
    assert env._adapted._env.given == {"prompt": "3+4=", "answer": "4"}
    two = env.step(f"First {call('climb', floors=1)} and {call('climb', floors=3)}")
    assert [said["content"] for said in two.text] == ["1", "4"]
    assert (two.text[0]["role"], two.text[0]["name"], two.reward, two.done) == ("tool", "climb", None, False)
    assert two.counts == {"tool_calls": 2, "tool_errors": 0, "tool/climb": 2}
    assert env.step("Done.") == Observation(reward=1.0, done=True)

    env.start(Task(answer="4", gold=4, columns={"target": 4}), 0)
    assert env._adapted._env.given["answer"] == 4
    assert "Climb to floor" in env.start(task(), 0).text
    (far,) = env.step(call("climb", floors=6)).text
    assert far["content"] == "error: ValueError: No such floor."
    for wrong in (call("climb"), call("climb", floors="far"), call("get_reward"), call("_hidden"), call("reset")):
        assert env.step(wrong).counts["tool_errors"] == 1
    assert env.step("Enough.") == Observation(reward=0.0, done=True)


def test_trl_s_async_methods_share_a_loop(file: Path) -> None:
    env = build(file / "trl.py", "Async")
    env.start(task(target=3), 0)
    for floor in (1, 2):
        assert env.step(call("climb", floors=1)).text[0]["content"] == str(floor)
    assert env.step("Done.").reward == 1.0


def test_trl_without_get_reward_leaves_it_to_the_rewards(file: Path) -> None:
    env = build(file / "trl.py", "Unrewarded")
    env.start(task(target=3), 0)
    assert env.step("Done.") == Observation(done=True)
    assert env.range == (0.0, 0.0)
    assert build(file / "trl.py", "Stairs").range is None


def test_trl_s_reward_comes_where_it_is_cut(file: Path) -> None:
    env = build(file / "trl.py", "Stairs")
    assert environment_declaration(env, "stairs").cut
    for turns, unheard, floor in [
        ([call("climb", floors=4)], "", 4),  # conversation.max_turns, or the answer leaves no room for another turn
        ([call("climb", floors=1)], f"And {call('climb', floors=3)} or", 4),  # the call is made, as in TRL
        ([], "", 0),
        ([call("climb", floors=1)], call("climb", floors=3)[:-20], 1),
        ([call("climb", floors=4)], "Here I", 4),
    ]:
        env.start(task(target=4), 0)
        assert not any(env.step(turn).done for turn in turns)
        assert env.cut(unheard) == Observation(reward=float(floor == 4), done=True)
        assert env._adapted._env.floor == floor
    rewarded_elsewhere = build(file / "trl.py", "Unrewarded")
    rewarded_elsewhere.start(task(target=4), 0)
    assert rewarded_elsewhere.cut("Here").reward is None
    asynchronous = build(file / "trl.py", "Async")
    asynchronous.start(task(target=4), 0)
    asynchronous.step(call("climb", floors=1))
    assert asynchronous.cut("").reward == 1.0


def test_trl_s_calls_may_be_in_another_format(file: Path) -> None:
    env = build(file / "trl.py", "Stairs", format="python")
    env.start(task(target=3), 0)
    assert env.step("[climb(floors=3)]").text[0]["content"] == "3"


def test_gym(file: Path) -> None:
    env = build(file / "gym.py", "GuessEnv", kwargs={"tries": 2})
    assert env.range == (0.0, 1.0)
    assert env.start(task("3", level=2), 5) == Observation(text="A number from 0 to 9?", info={"level": 2})
    assert env.step("1") == Observation(text="higher", reward=0.0, info={"left": 1})
    assert env.step("5") == Observation(text="lower", reward=0.0, done=True, info={"left": 0, "truncated": True})
    env.start(task("3"), 5)
    assert env.step("3") == Observation(text="right", reward=1.0, done=True)
    for options, span in (({}, (0.0, 1.0)), ({"range": (-1, 2)}, (-1.0, 2.0))):
        assert build(file / "gym.py", "make", kwargs={"id": "Guess-v0"}, **options).range == span


def test_a_gym_s_seed_makes_it_again(file: Path) -> None:
    numbers = []
    for seed in (1, 1 + 2**31, 2):  # of 31 bits, as numpy's older generator takes them
        env = build(file / "gym.py", "GuessEnv", kwargs={"highest": 10**6})
        env.start(task(""), seed)
        numbers.append(env._adapted._env.number)
    assert numbers[0] == numbers[1] != numbers[2]


def test_numpy_s_types_are_python_s(file: Path) -> None:
    env = build(file / "gym.py", "Numpy")
    env.start(task(), 0)
    answer = env.step("1")
    assert (type(answer.text), type(answer.reward), answer.done) == (str, float, True)
    assert answer.info["at"] == [0, 1]
    assert "GuessEnv" in answer.info["of"]
    json.dumps(answer.info)


def test_textarena(file: Path) -> None:
    for name in ("Wordle", "Raw"):
        env = build(file / "textarena.py", name)
        assert env.start(task(), 3).text == "[GAME] You play Wordle."
        assert env.step("[stone]").text == "[Player 0] [stone]\n[GAME] X G Y X X (1)"
        assert env.step("[crane]") == Observation(reward=1.0, done=True, info={"reason": "over", "turns": 2})


def test_skyrl(file: Path) -> None:
    env = build(file / "skyrl.py", "Multiply", kwargs={"extras": {"max_turns": 3}, "env_config": {"partial": 0.25}})
    for _ in range(2):
        assert env.start(task("56", level=4), 0).text == []
        first = env.step("It is \\boxed{54}.")
        assert first == Observation(text=[{"role": "user", "content": "Try again."}], reward=0.0, info={"level": 4})
        last = env.step("\\boxed{56}")
        assert (last.reward, last.done, last.text, last.counts) == (1.0, True, [], {"steps": 2.0})
    assert sys.modules[type(env._adapted._env).__module__].closed == [2, 2]

    given = {"method": "rule", "ground_truth": "8"}
    env.start(task("56", reward_spec=given), 0)
    assert [env.step("\\boxed{56}").reward for _ in range(3)] == [0.0, 0.0, 0.25]
    env.start(task("56", reward_spec=given), 0)
    assert env.step("\\boxed{8}").reward == 1.0


def test_skyrl_s_metrics_are_read_where_it_is_cut(file: Path) -> None:
    env = build(file / "skyrl.py", "Multiply")
    assert environment_declaration(env, "multiply").cut
    env.start(task("56"), 0)
    env.step("\\boxed{54}")
    assert env.cut("It is") == Observation(counts={"steps": 1.0})
    assert sys.modules[type(env._adapted._env).__module__].closed == [1]


@pytest.mark.parametrize(("module", "name"), [("gym", "GuessEnv"), ("textarena", "Wordle")])
def test_other_styles_are_told_of_no_cut(file: Path, module: str, name: str) -> None:
    assert not environment_declaration(build(file / f"{module}.py", name), name).cut


def test_what_makes_skyrl_s_may_be_a_function(file: Path) -> None:
    env = build(file / "skyrl.py", "make", style="skyrl", kwargs={"id": "multiply", "extras": {"max_turns": 1}})
    assert [each.reward for each in played(env, "\\boxed{7}")] == [None, 1.0]


def test_what_skyrl_s_init_adds_to_the_prompt_is_said(file: Path) -> None:
    env = build(file / "skyrl.py", "WithConfig", kwargs={"env_config": {"tone": "Quickly!"}})
    chat = [{"role": "system", "content": "Multiply."}, {"role": "user", "content": "7 * 8"}]
    begun = env.start(task(question=chat), 0)
    assert begun == Observation(text=[{"role": "user", "content": "Quickly!"}], info={"tone": "Quickly!"})


def test_verifiers(file: Path) -> None:
    env = build(file / "vf.py", "load_environment", kwargs={"max_turns": 4})
    assert env.start(task("7"), 0).text == []
    assert env.step("3") == Observation(text=[{"role": "user", "content": "higher"}])
    assert env.step("9") == Observation(text=[{"role": "user", "content": "lower"}])
    won = env.step("7")
    assert (won.done, won.text, won.info) == (True, [], {"stop_condition": "has_won"})
    assert won.reward == pytest.approx(1 + 0.1 / 3)
    assert won.counts == {"won": 1.0, "brevity": pytest.approx(1 / 3), "turns": 3.0}

    env.start(task("7"), 0)
    gone = env.step("resign")
    assert (gone.done, gone.text) == (True, [{"role": "user", "content": "A pity."}])
    assert gone.info == {"stop_condition": "has_final_env_response"}
    assert gone.reward == pytest.approx(0.1)

    env.start(task("7"), 0)
    lost = [env.step(str(guess)) for guess in (1, 2, 3, 4)]
    assert [each.done for each in lost] == [False, False, False, True]
    assert lost[-1].info == {"stop_condition": "max_turns_reached"}
    assert [each.reward for each in lost] == [None, None, None, pytest.approx(0.025)]


def test_verifiers_rubric_scores_where_it_is_cut(file: Path) -> None:
    env = build(file / "vf.py", "patient")
    assert environment_declaration(env, "patient").cut
    env.start(task("7"), 0)
    assert env.step("17").text[0]["content"] == "lower"
    cut = env.cut("")  # the rubric reads what the model has said last, and not the answer to that
    assert (cut.reward, cut.info, cut.text) == (1.0, {}, [])
    assert cut.counts == {"correct_answer": 1.0, "won": 0.0, "truncated": 0.0}
    state = env._adapted._state
    assert [said["role"] for said in state["completion"]] == ["assistant"]
    assert (state["is_completed"], len(state["trajectory"])) == (True, 1)

    env.start(task("7"), 0)
    env.step("3")
    cut = env.cut("7")
    assert (cut.reward, cut.info) == (1.5, {"stop_condition": "has_won"})
    assert cut.counts["truncated"] == 1
    state = env._adapted._state
    assert [said["content"] for said in state["completion"]] == ["3", "higher", "7"]
    assert [turn["is_truncated"] for turn in state["trajectory"]] == [False, True]

    env.start(task("7"), 0)
    cut = env.cut("It may")
    assert (cut.reward, cut.info) == (0.0, {})
    for nothing in range(2):  # of a turn of special tokens alone, no text is left
        env.start(task("7"), 0)
        if nothing:
            env.step("3")
        assert env.cut("").reward == 0


def test_verifiers_in_one_turn(file: Path) -> None:
    env = build(file / "vf.py", "one_turn")
    for info, reward in (({"worth": 2.0}, 2.0), ({}, 1.0)):
        env.start(task("7", info=info), 0)
        assert env.step("it is 7").reward == reward


def test_verifiers_tools(file: Path) -> None:
    env = build(file / "vf.py", "calculating")
    assert [tool["function"]["name"] for tool in env.tools] == ["add"]
    env.start(task("7"), 0)
    both = env.step(
        'So: <tool_call>{"name": "add", "arguments": {"a": 3, "b": 4}}</tool_call>'
        '<tool_call>{"name": "sub", "arguments": {}}</tool_call>'
    )
    assert [(said["role"], said["content"], said["tool_call_id"]) for said in both.text] == [
        ("tool", "7", "call_0_0"),
        ("tool", "'sub'", "call_0_1"),
    ]
    assert env.step("It is 7.").info == {"stop_condition": "no_tools_called"}
    env.start(task("7"), 0)
    assert env.step('<tool_call>{"name": "add", 7</tool_call>').reward == 1.0  # what cannot be read is no call
    qwen = build(file / "vf.py", "calculating", format="qwen")
    qwen.start(task("7"), 0)
    call = "<tool_call><function=add><parameter=a>3</parameter><parameter=b>4</parameter></function></tool_call>"
    assert qwen.step(call).text[0]["content"] == "7"


def test_what_verifiers_setup_adds_to_the_prompt_is_said(file: Path) -> None:
    env = build(file / "vf.py", "Announces")
    assert env.start(task("7"), 0).text == [{"role": "user", "content": "0 to 9."}]
    assert env.step("3").text == [{"role": "user", "content": "higher"}]


@pytest.mark.parametrize(
    ("module", "name", "style", "fits"),
    [
        ("trl", "Stairs", "gym", "trl"),
        ("gym", "GuessEnv", "skyrl", "gym"),
        ("gym", "GuessEnv", "verifiers", "gym"),
        ("textarena", "Wordle", "verifiers", "textarena"),
        ("skyrl", "Multiply", "gym", "skyrl"),
        ("vf", "Guessing", "textarena", "verifiers"),
        ("vf", "load_environment", "gym", "verifiers"),
    ],
)
def test_methods_of_another_style_name_it(file: Path, module: str, name: str, style: str, fits: str) -> None:
    with pytest.raises(ConfigError, match=f"set style: {fits}$") as error:
        build(file / f"{module}.py", name, style=style)
    assert f"{module}.py:{name} does not fit: style '{style}' calls" in str(error.value)


@pytest.mark.parametrize(
    ("module", "name", "options", "message"),
    [
        ("trl", "NoHints", {}, "'where'"),
        ("gym", "GuessEnv", {"style": "trl"}, ". Or set style: gym, whose methods it has"),
        ("trl", "NoTools", {"style": "trl"}, "calls reset and methods that are tools, and it has no method that is"),
        ("gym", "GuesEnv", {}, "has no 'GuesEnv'; did you mean 'GuessEnv'"),
        ("gym", "number", {}, "is int (3); name a class, or a function that makes the environment"),
        ("gym", "GuessEnv", {"kwargs": {"trys": 1}}, "cannot be made of kwargs (got an unexpected keyword"),
        ("gym", "make", {}, "cannot be made of kwargs (missing a required argument: 'id')"),
        ("gym", "Own", {}, "decorate it with @rlkit.environment(NAME), name its file in plugins"),
        (
            "gym",
            "Neither",
            {},
            "are those of no style: verifiers has env_response and init_state; skyrl has init and",
        ),
        ("gym", "Neither", {"style": "gym"}, "style 'gym' calls reset and step, and it has no reset"),
        ("skyrl", "Multiply", {"kwargs": {"extra": {}}}, "cannot be made of kwargs (got an unexpected keyword"),
        ("skyrl", "Wants", {}, "cannot be made of kwargs (missing a required argument: 'tokenizer')"),
        ("vf", "in_groups", {}, "its rubric has rewards of a whole group"),
        ("missing", "Env", {}, "does not exist"),
    ],
)
def test_what_cannot_be_an_environment_is_named_at_the_start(
    file: Path, module: str, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        build(file / f"{module}.py", name, **options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        (
            "gym",
            "Old",
            "gym.py:Old.step returned a tuple of 4: in style 'gym' it must return (observation, reward",
        ),
        ("trl", "NeedsAColumn", "reset(difficulty) cannot be called: missing a required argument: 'difficulty'. Gi"),
        ("trl", "Numbers", "Numbers.reset gave the observation int (3): it must be text"),
        ("trl", "Graded", "Graded.get_reward: the reward is str (good): it must be a number"),
        ("gym", "Bare", "Bare.reset returned str (begin): in style 'gym' it must return (observation, info)"),
        ("gym", "Pictures", "Pictures.reset gave the observation list ([[0, 1]]): it must be text"),
        ("gym", "Flagless", "Flagless.step: terminated is str (yes): it must be True or False"),
        ("gym", "Unpaid", "Unpaid.step: the reward is str (high): it must be a number"),
        (
            "textarena",
            "Unrewarded",
            "Unrewarded.close returned None: in style 'textarena' it must return (rewards",
        ),
        ("skyrl", "Rewrites", "Rewrites.init has changed what was said before"),
        ("skyrl", "Cuts", "Cuts.step returned a postprocessed_action"),
        ("skyrl", "Forgets", "Forgets.step returned a dict without 'done': it must return a BaseTextEnvStepOutput"),
        ("skyrl", "Nothing", "Nothing.step returned None: it must return a BaseTextEnvStepOutput"),
        ("skyrl", "Mute", "Mute.step gave the message str (again): it must have a role and content"),
        ("vf", "Forgets", "Forgets.env_response has changed what was said before"),
        ("vf", "Vague", "Vague returned None: it must return a list of chat messages"),
    ],
)
def test_what_no_environment_of_its_style_returns_is_named(file: Path, module: str, name: str, message: str) -> None:
    with pytest.raises(RlkitError) as error:
        played(build(file / f"{module}.py", name), "1", "2", "crane")
    assert message in str(error.value)


def test_an_environment_s_own_handling_of_interrupts_is_not_the_run_s(file: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    build(file / "gym.py", "handles_signals")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give path and name, as in my_env.py:MyEnv; or, in style openenv, url"),
        ({"path": "json"}, "give path and name"),
        ({"style": "openenv"}, "give url"),
        ({"url": "http://a"}, "set style: openenv"),
        ({"style": "openenv", "url": "a"}, "http://"),
        ({"path": "json", "name": "loads", "style": "gym", "format": "qwen"}, "format is for the tools of styles trl"),
        ({"style": "openenv", "url": "http://a", "kwargs": {"a": 1}}, "takes no kwargs"),
        ({"path": "json", "name": "loads", "action": "code"}, "action: for style openenv"),
        ({"path": "json", "name": "loads", "range": (1, 1)}, "below"),
        ({"path": "json", "name": "loads", "style": "gymm"}, "style"),
        ({"style": "openenv", "url": "http://a", "api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY, which is not set"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        registry.build("environments", "class", options)
    assert message in str(error.value)


def test_settings_are_the_same_when_they_are_read_again(file: Path) -> None:
    for options in ({"path": "json", "name": "loads", "style": "gym"}, {"style": "openenv", "url": "http://a"}):
        ref = configs.resolve_ref("environments", configs.PluginRef(kind="class", **options), "environment")
        assert configs.resolve_ref("environments", ref, "environment") == ref


def test_file_and_class_are_short_for_it(file: Path) -> None:
    short = configs.load("embedded_xs", [f"environment={file / 'gym.py'}:GuessEnv"])
    assert short.environment is not None
    assert short.environment.kind == "class"
    assert short.environment.options == {"path": str(file / "gym.py"), "name": "GuessEnv"}
    more = configs.load("embedded_xs", [f"environment={file / 'gym.py'}:GuessEnv", "environment.kwargs={tries: 1}"])
    assert more.environment is not None
    assert more.environment.options["kwargs"] == {"tries": 1}
    assert configs.load("embedded_xs", ["environment=class"]).environment == configs.PluginRef(kind="class")


PLAYED = {
    "stairs.py": ([call("climb", floors=56), "Here I am."], [None, 1.0]),
    "multiply.py": (["54", "56"], [0.0, 1.0]),
    "guessing.py": (["3", "56"], [None, 1.0]),
    "guess_env.py": (["nothing", "x"], [0.0, 0.0]),
}


def test_the_page_s_environments_play(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "environments-of-others.md").read_text()
    for name, code in re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        Path(name).write_text(code)
    made = set()
    for block in re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE):
        config = TypeAdapter(EnvironmentRef).validate_python(yaml.safe_load(block)["environment"])
        if (name := str(config.options.get("path"))) in PLAYED:
            env = registry.build("environments", config.kind, config.options)
            env.start(Task(question="7 * 8", answer="56", gold="56"), 0)
            turns, rewards = PLAYED[name]
            assert [env.step(turn).reward for turn in turns] == rewards
            made.add(name)
    assert made == PLAYED.keys()
