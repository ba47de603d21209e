"""Every sampler draws from the model's own distribution, says so truly, and takes new weights whole.

Held against a plain forward pass of transformers, for the embedded model and for random ones with a tied and an
untied head (a tied head that stays old after a sync is the failure that nothing else shows).
"""

from __future__ import annotations

import importlib.util
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from random_batches import fresh_seed
from sampler_help import Talk, ask, forward, largest_gap, naive_end, random_model, spanning_stops
from torch import Tensor
from transformers import AutoTokenizer

from rlkit import registry
from rlkit.config import ModelConfig
from rlkit.embedded import resolve
from rlkit.errors import RlkitError
from rlkit.interfaces.generation import Completion, Request, Sampler, SamplingParams

GAP = 1e-4
CONTEXT = 200
PROMPTS = [[5, 9, 7, 11, 3, 8], [6], [4, 12, 13], [10, 10, 6, 5, 4, 3, 7, 8, 9]]

vllm_missing = importlib.util.find_spec("vllm") is None
SAMPLERS = [
    "transformers",
    pytest.param("vllm", marks=pytest.mark.skipif(vllm_missing, reason="vLLM is not installed")),
]


@pytest.fixture(scope="module", params=["embedded", "tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "embedded":
        return Path(resolve("embedded:xs"))
    path = tmp_path_factory.mktemp(request.param)
    random_model(path, request.param == "tied", seed=0)
    return path


@pytest.fixture(scope="module", params=SAMPLERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def sampler(kind: str, folder: Path) -> Iterator[Sampler]:
    built = registry.build("samplers", kind, {}, ModelConfig(path=str(folder), dtype="float32"), CONTEXT, 0)
    yield built
    built.close()
    built.close()


@pytest.fixture
def model(sampler: Sampler, folder: Path) -> Any:
    """The model as its folder has it, and the sampler with the same weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sampler.sync(model.named_parameters(), 0)
    return model


def assert_drawn_from(probabilities: Tensor, tokens: list[int]) -> None:
    """Frequencies within 5 standard errors."""
    frequencies = torch.bincount(torch.tensor(tokens), minlength=len(probabilities)).double() / len(tokens)
    error = (probabilities * (1 - probabilities) / len(tokens)).sqrt()
    excess = (frequencies - probabilities).abs() - 5 * error - 1 / len(tokens)
    assert excess.max() <= 0, f"token {int(excess.argmax())}: {frequencies[excess.argmax()]} drawn"


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_those_of_a_plain_forward_pass(sampler: Sampler, model: Any, temperature: float) -> None:
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(64)]
    completions = ask(sampler, prompts, list(range(64)), temperature=temperature)
    assert sum(len(completion.tokens) for completion in completions) > 300
    assert largest_gap(model, prompts, completions, temperature) <= GAP


def test_after_a_sync_it_draws_from_the_new_weights_and_says_so(sampler: Sampler, model: Any) -> None:
    prompts = [PROMPTS[0]] * 1000
    before = ask(sampler, prompts, list(range(1000)), max_tokens=4)
    assert {completion.version for completion in before} == {0}
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5 * parameter.std().nan_to_num(0.0))
    assert largest_gap(model, prompts, before, 1.0) > 0.1, "the test's new weights are too like the old ones"

    sampler.sync(model.named_parameters(), 7)
    after = ask(sampler, prompts, list(range(1000)), max_tokens=4)
    assert {completion.version for completion in after} == {7}
    assert largest_gap(model, prompts, after, 1.0) <= GAP
    probabilities = forward(model, PROMPTS[0], [0])[0].double().softmax(-1)
    assert_drawn_from(probabilities, [completion.tokens[0] for completion in after])


def test_after_a_sync_nothing_is_left_of_a_prompt_that_it_knew(sampler: Sampler, model: Any) -> None:
    """The prompt is longer than a block of vLLM's prefix cache, which is 128 tokens on a CPU."""
    prompt = [3 + i % 9 for i in range(150)]
    assert largest_gap(model, [prompt], ask(sampler, [prompt], [5]), 1.0) <= GAP
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "v_proj" in name:
                parameter.mul_(-1.0)
    sampler.sync(model.named_parameters(), 1)
    assert largest_gap(model, [prompt], ask(sampler, [prompt], [5]), 1.0) <= GAP


@pytest.mark.parametrize("part", ["embed_tokens", "v_proj", "down_proj", "model.norm"])
def test_each_kind_of_weight_arrives(sampler: Sampler, model: Any, part: str) -> None:
    """One part changes: the head (or the embedding it is tied to), a fused projection, a plain one, a norm."""
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(16)]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name or (part == "embed_tokens" and "lm_head" in name):
                parameter.mul_(1.5)
    sampler.sync(model.named_parameters(), 1)
    assert largest_gap(model, prompts, ask(sampler, prompts, list(range(16))), 1.0) <= GAP


def test_a_sync_that_leaves_weights_old_is_an_error(sampler: Sampler, model: Any) -> None:
    partial = [(name, p) for name, p in model.named_parameters() if "layers.1.mlp.down_proj" not in name]
    with pytest.raises(RlkitError, match=r"1 weights .* were not sent, .*down_proj"):
        sampler.sync(partial, 1)


def test_tokens_follow_the_softmax(sampler: Sampler, model: Any) -> None:
    """The first ones, and the second ones after the first that is the most common."""
    completions = ask(sampler, [PROMPTS[2]] * 2000, list(range(2000)), max_tokens=2)
    firsts = [completion.tokens[0] for completion in completions]
    assert_drawn_from(forward(model, PROMPTS[2], [0])[0].double().softmax(-1), firsts)

    pairs = [completion.tokens for completion in completions if len(completion.tokens) == 2]
    common = torch.bincount(torch.tensor([first for first, _ in pairs])).argmax().item()
    seconds = [second for first, second in pairs if first == common]
    assert_drawn_from(forward(model, PROMPTS[2], [common, 0])[1].double().softmax(-1), seconds)


def test_a_sample_follows_from_its_seed_alone(sampler: Sampler, model: Any) -> None:
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(48)]
    seeds = [i * 2**57 + 3 for i in range(48)]
    together = ask(sampler, prompts, seeds)
    assert [c.tokens for c in ask(sampler, prompts, seeds)] == [c.tokens for c in together]
    order = [31, 2, 17, 44]
    few = ask(sampler, [prompts[i] for i in order], [seeds[i] for i in order])
    assert [c.tokens for c in few] == [together[i].tokens for i in order]
    alone = [ask(sampler, [prompts[i]], [seeds[i]])[0] for i in order]
    assert [c.tokens for c in alone] == [c.tokens for c in few]


def test_different_seeds_give_different_samples(sampler: Sampler, model: Any) -> None:
    completions = ask(sampler, [PROMPTS[0]] * 200, list(range(200)))
    assert len({tuple(c.tokens) for c in completions}) > 20


def test_temperature_0_is_the_argmax(sampler: Sampler, model: Any) -> None:
    completions = ask(sampler, PROMPTS, [0] * len(PROMPTS), temperature=0.0)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        assert forward(model, prompt, completion.tokens).argmax(-1).tolist() == completion.tokens
    assert largest_gap(model, PROMPTS, completions, 1.0) <= GAP


def test_top_k_and_top_p_cut_the_distribution_that_log_probs_are_of(sampler: Sampler, model: Any) -> None:
    logprobs = forward(model, PROMPTS[0], [0])[0].log_softmax(-1)
    best, where = logprobs.sort(descending=True)

    for count in (1, 5):
        kept = dict(zip(where[:count].tolist(), best[:count].log_softmax(-1).tolist(), strict=True))
        assert_in(kept, ask(sampler, [PROMPTS[0]] * 300, list(range(300)), max_tokens=1, top_k=count))

    count = int((best.exp().cumsum(-1) < 0.7).sum()) + 1
    kept = dict(zip(where[:count].tolist(), best[:count].log_softmax(-1).tolist(), strict=True))
    assert_in(kept, ask(sampler, [PROMPTS[0]] * 300, list(range(300)), max_tokens=1, top_p=0.7))


def assert_in(kept: dict[int, float], completions: list[Completion]) -> None:
    """Only these tokens, with these log-probs."""
    for completion in completions:
        assert completion.logprobs[0] == pytest.approx(kept[completion.tokens[0]], abs=GAP)


def test_end_tokens_end_a_sample_and_stay_in_it(sampler: Sampler, model: Any, folder: Path) -> None:
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    own = set(ends if isinstance(ends, list) else [ends])
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(200)]
    completions = ask(sampler, prompts, list(range(200)))
    assert not all(completion.truncated for completion in completions)
    for completion in completions:
        assert own.isdisjoint(completion.tokens[:-1])
        assert completion.truncated == (completion.tokens[-1] not in own)
        assert len(completion.tokens) == 24 or not completion.truncated


def test_a_stop_text_ends_a_sample_with_the_token_that_completes_it(sampler: Sampler, model: Any, folder: Path) -> None:
    """Whatever samples: what it says without stop texts is cut where decoding all of it first shows one."""
    rng = random.Random(fresh_seed())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts, seeds = [PROMPTS[i % len(PROMPTS)] for i in range(120)], list(range(120))
    plain = ask(sampler, prompts, seeds)
    for stop in (tuple(spanning_stops(tokenizer, plain, 3, rng)), ("never said",)):
        ends = [naive_end(tokenizer, completion.tokens, stop) for completion in plain]
        assert any(ends) == (stop != ("never said",))
        for completion, whole, end in zip(ask(sampler, prompts, seeds, stop=stop), plain, ends, strict=True):
            assert completion.tokens == whole.tokens[:end], stop
            assert completion.logprobs == pytest.approx(whole.logprobs[:end], abs=GAP)
            assert completion.truncated == (end is None and whole.truncated)


def test_requests_of_several_kinds_may_be_mixed(sampler: Sampler, model: Any) -> None:
    kinds = [
        *(SamplingParams(max_tokens=3), SamplingParams(max_tokens=9, temperature=0.0), SamplingParams(max_tokens=5)),
        *(SamplingParams(max_tokens=20, stop=stop) for stop in (("1", "aa"), ("2",))),
    ]
    requests = [Request(prompt_tokens=PROMPTS[i % 4], seed=i, params=kinds[i % 5]) for i in range(20)]
    completions = dict(sampler.generate(requests))
    for i, request in enumerate(requests):
        alone = dict(sampler.generate([request]))[0]
        assert completions[i].tokens == alone.tokens
        assert len(alone.tokens) <= request.params.max_tokens


def test_prompts_may_be_more_than_one_pass_takes(sampler: Sampler, model: Any) -> None:
    """vLLM takes 4,096 tokens at a time on a CPU, and knows no prompt's beginning here from another."""
    rng = random.Random(0)
    prompts = [rng.choices(range(3, 20), k=150) for _ in range(40)]
    assert largest_gap(model, prompts, ask(sampler, prompts, list(range(40)), max_tokens=4), 1.0) <= GAP


def test_a_caller_who_stops_listening_leaves_nothing_behind(sampler: Sampler, model: Any) -> None:
    requests = [Request(prompt_tokens=PROMPTS[0], seed=i, params=SamplingParams(max_tokens=24)) for i in range(16)]
    for _ in sampler.generate(requests):
        break
    assert len(ask(sampler, PROMPTS, [1, 2, 3, 4])) == 4


def test_a_request_past_the_context_is_refused(sampler: Sampler) -> None:
    too_long = Request(prompt_tokens=[5] * 190, seed=0, params=SamplingParams(max_tokens=15))
    with pytest.raises(RlkitError, match="prompt of 190 tokens and max_tokens 15 exceed the sampler's context of 200"):
        list(sampler.generate([too_long]))


@pytest.fixture
def streaming(sampler: Sampler, model: Any, folder: Path) -> Any:
    if not hasattr(sampler, "stream") or not folder.name.startswith("tied"):
        pytest.skip("one model is enough, and not every sampler has it")
    return sampler


def test_turns_that_come_late_are_sampled_as_all_at_once(
    streaming: Any, model: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stop texts and without; what was computed of a turn's prompt is not computed again for the next."""
    rng = random.Random(fresh_seed())
    step, cached = streaming._llm.llm_engine.step, {}

    def noted() -> Any:
        outputs = step()
        cached.update({int(output.request_id): output.num_cached_tokens for output in outputs})
        return outputs

    prompts = [[3, *rng.choices(range(3, 20), k=129 + i)] for i in range(6)]
    plain = ask(streaming, prompts, list(range(6)), max_tokens=8)
    stop = tuple(spanning_stops(AutoTokenizer.from_pretrained(folder), plain, 2, rng))
    params = [SamplingParams(max_tokens=4 + i, stop=stop if i % 2 else ()) for i in range(6)]
    talk = Talk(
        [Request(prompt_tokens=p, seed=10 * i, params=params[i]) for i, p in enumerate(prompts)],
        [1, 2, 3, 4, 3, 2],
        wait_s=0.005,
    )
    with monkeypatch.context() as patch:
        patch.setattr(streaming._llm.llm_engine, "step", noted)
        streaming.sync(model.named_parameters(), 9)  # and with it the cache is empty
        found = talk.hold(streaming)
    requests = [request for _, request in talk.asked]
    assert len(requests) == 15
    assert [cached[i] for i in range(15)] == [0] * 6 + [128] * 9, "a block is 128 tokens on a CPU"
    for completion, again in zip(found, (c for _, c in sorted(streaming.generate(requests))), strict=True):
        assert completion.tokens == again.tokens
        assert completion.logprobs == pytest.approx(again.logprobs, abs=GAP)
        assert (completion.truncated, completion.version) == (again.truncated, 9)


def test_a_long_response_goes_on_while_another_conversation_waits(streaming: Any) -> None:
    """For 50 ms before its next turn."""
    long, short = (SamplingParams(max_tokens=tokens, temperature=0.0) for tokens in (80, 1))
    talk = Talk(
        [Request(prompt_tokens=PROMPTS[0], seed=0, params=long), Request(prompt_tokens=[7], seed=0, params=short)],
        [1, 2],
        wait_s=0.05,
    )
    assert len(talk.hold(streaming)[0].tokens) == 80
    first, again = (i for i, event in enumerate(talk.events) if event == ("asked", 1))
    assert talk.events.count(("nothing new", -1)) > talk.events[first:again].count(("nothing new", -1)) > 0
    happened = [event for event in talk.events if event != ("nothing new", -1)]
    assert happened == [("asked", 0), *[("asked", 1), ("answered", 1)] * 2, ("answered", 0)]


def test_a_request_past_the_context_that_comes_late_is_refused_by_its_number(streaming: Any) -> None:
    talk = Talk([Request(prompt_tokens=[5] * 190, seed=0, params=SamplingParams(max_tokens=8))], [2])
    with pytest.raises(RlkitError, match=r"^request 1: a prompt of \d+ tokens and max_tokens 8 exceed"):
        talk.hold(streaming)
    assert len(ask(streaming, PROMPTS, [1, 2, 3, 4])) == 4
