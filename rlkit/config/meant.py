"""What users of other projects, and of short names, call the keys of a config. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import BaseModel

from rlkit.config.keys import PLUGINS, SHORT, keys
from rlkit.config.run import RunConfig

MEANT: dict[str, tuple[str, ...]] = {
    "accelerate_config": ("engine.zero_stage",),
    "actor_learning_rate": ("optimizer.lr",),
    "adam_betas": ("optimizer.betas",),
    "adam_offload": ("engine.offload_optimizer",),
    "adv_estimator": ("algo", "advantage"),
    "advantage_estimator": ("algo", "advantage"),
    "algorithm": ("algo",),
    "apply_chat_template": ("data.chat",),
    "batch_size": ("batch.prompts_per_step",),
    "beta": ("algo.beta", "algo.kl_coef"),
    "bf16": ("model.dtype",),
    "ckpt_path": ("out",),
    "clip_ratio": ("algo.clip_low", "algo.clip_high"),
    "clip_ratio_high": ("algo.clip_high",),
    "clip_ratio_low": ("algo.clip_low",),
    "cliprange": ("algo.clip_low", "algo.clip_high"),
    "cliprange_value": ("algo.value_clip",),
    "critic_learning_rate": ("critic.optimizer.lr",),
    "critic_lr": ("critic.optimizer.lr",),
    "critic_pretrain": ("critic.path",),
    "dataset": ("data.path",),
    "dataset_config": ("data.subset",),
    "dataset_name": ("data.path",),
    "dataset_path": ("data.path",),
    "dataset_split": ("data.split",),
    "dataset_train_split": ("data.split",),
    "deepspeed": ("engine.zero_stage",),
    "entropy_coeff": ("algo.entropy_coef",),
    "eps_clip": ("algo.clip_low", "algo.clip_high"),
    "epsilon": ("algo.clip_low", "algo.clip_high"),
    "epsilon_high": ("algo.clip_high",),
    "eval_dataset": ("data.eval_path",),
    "eval_steps": ("eval.every",),
    "experiment_name": ("name",),
    "generate_max_len": ("sampling.max_tokens",),
    "gpu_memory_utilization": ("sampler.gpu_memory",),
    "grad_clip": ("optimizer.clip_norm",),
    "group_size": ("batch.samples_per_prompt",),
    "init_kl_coef": ("algo.kl_coef", "algo.beta"),
    "input_key": ("data.prompt",),
    "input_template": ("data.template",),
    "kl_coef": ("algo.kl_coef", "algo.beta"),
    "kl_loss_coef": ("algo.kl_coef", "algo.beta"),
    "label_key": ("data.answer",),
    "lambd": ("algo.lam",),
    "learning_rate": ("optimizer.lr",),
    "load_in_bf16": ("model.dtype",),
    "logger": ("trackers",),
    "lora_alpha": ("model.lora.alpha",),
    "lora_r": ("model.lora.rank",),
    "lora_rank": ("model.lora.rank",),
    "lora_target_modules": ("model.lora.targets",),
    "loss_type": ("algo.aggregation",),
    "lr_scheduler": ("optimizer.schedule",),
    "lr_scheduler_type": ("optimizer.schedule",),
    "lr_warmup_steps": ("optimizer.warmup_updates",),
    "max_completion_length": ("sampling.max_tokens",),
    "max_grad_norm": ("optimizer.clip_norm",),
    "max_new_tokens": ("sampling.max_tokens",),
    "max_norm": ("optimizer.clip_norm",),
    "max_prompt_length": ("data.max_prompt_tokens",),
    "max_response_length": ("sampling.max_tokens",),
    "max_steps": ("steps",),
    "micro_rollout_batch_size": ("sampler.max_batch",),
    "micro_train_batch_size": ("batch.tokens_per_microbatch",),
    "mini_batch_size": ("batch.minibatches",),
    "model_name": ("model.path",),
    "model_name_or_path": ("model.path",),
    "model_path": ("model.path",),
    "n": ("batch.samples_per_prompt",),
    "n_samples_per_prompt": ("batch.samples_per_prompt",),
    "num_episodes": ("steps",),
    "num_generations": ("batch.samples_per_prompt",),
    "num_iterations": ("batch.epochs",),
    "num_mini_batches": ("batch.minibatches",),
    "num_ppo_epochs": ("batch.epochs",),
    "num_train_epochs": ("steps",),
    "output_dir": ("out",),
    "per_device_train_batch_size": ("batch.prompts_per_step", "batch.tokens_per_microbatch"),
    "policy_model": ("model.path",),
    "ppo_epochs": ("batch.epochs",),
    "ppo_micro_batch_size_per_gpu": ("batch.tokens_per_microbatch",),
    "ppo_mini_batch_size": ("batch.minibatches",),
    "pretrain": ("model.path",),
    "prompt_data": ("data.path",),
    "prompt_key": ("data.prompt",),
    "prompt_max_len": ("data.max_prompt_tokens",),
    "remote_rm_url": ("reward.url",),
    "report_to": ("trackers",),
    "response_length": ("sampling.max_tokens",),
    "reward_fn": ("reward",),
    "reward_func": ("reward",),
    "reward_funcs": ("reward",),
    "reward_function": ("reward",),
    "reward_model": ("reward",),
    "reward_pretrain": ("reward",),
    "reward_weights": ("reward.weight",),
    "rollout_batch_size": ("batch.prompts_per_step",),
    "run_name": ("name",),
    "save_freq": ("checkpoint.every",),
    "save_path": ("out",),
    "save_steps": ("checkpoint.every",),
    "save_total_limit": ("checkpoint.keep",),
    "system_prompt": ("data.system",),
    "tensor_model_parallel_size": ("sampler.tensor_parallel",),
    "test_freq": ("eval.every",),
    "total_epochs": ("steps",),
    "total_training_steps": ("steps",),
    "train_batch_size": ("batch.prompts_per_step",),
    "train_files": ("data.path",),
    "use_peft": ("model.lora.rank",),
    "use_vllm": ("sampler",),
    "use_wandb": ("trackers",),
    "val_files": ("data.eval_path",),
    "vllm_gpu_memory_utilization": ("sampler.gpu_memory",),
    "vllm_tensor_parallel_size": ("sampler.tensor_parallel",),
    "wandb_project": ("trackers",),
    "warmup": ("optimizer.warmup_updates",),
    "warmup_ratio": ("optimizer.warmup_updates",),
    "warmup_steps": ("optimizer.warmup_updates",),
}
"""What users of TRL, verl and OpenRLHF type -> the keys that are the same thing here, or the nearest to it."""


def instead_in(model: type[BaseModel]) -> Callable[[str], list[str]]:
    """For a word that is no key of such a config: the keys that it may have been meant for."""
    return lambda word: named(word, {key.name for key in keys(model)})


def instead_of_option(where: str, options: type[BaseModel]) -> Callable[[str], list[str]]:
    """For a word that is no option of the plugin that stands at the key `where`."""
    field = where.partition(".")[0]

    def instead(word: str) -> list[str]:
        others = {key.name for key in keys(RunConfig)} - PLUGINS.keys()
        return named(word, others | {f"{field}.{key.name}" for key in keys(options)})

    return instead


def named(word: str, known: set[str]) -> list[str]:
    """The keys that a word is short for, or meant for elsewhere, or of which it is the last part."""
    short = [key for key in [SHORT.get(word)] if key in known]
    return short or meant(word, known) or _called(word, known)


def meant(word: str, known: set[str]) -> list[str]:
    """The keys of `MEANT` that are there, in full or without their section; a plugin's own are taken on trust."""
    found = []
    for key in MEANT.get(word, ()):
        section, _, last = key.rpartition(".")
        if key in known or (section in PLUGINS and section in known):
            found.append(key)
        else:
            found += [name for name in (last, section) if name in known][:1]
    return found


def _called(word: str, known: set[str]) -> list[str]:
    """The keys that are called so, or whose last part is; those of the deepest sections last."""
    if word in known:
        return [word]
    found = [key for key in known if key.rpartition(".")[2] == word or key.replace(".", "_") == word]
    return sorted(found, key=lambda key: (key.count("."), key))
