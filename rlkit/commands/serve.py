"""The command that serves a model to runs on other machines: serve."""

from __future__ import annotations

import click

from rlkit.commands import completion
from rlkit.commands.options import trust_option


@click.command()
@click.argument("model", default="embedded:s", metavar="[MODEL|RUN]", shell_complete=completion.models)
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- VLLM OPTIONS]")
@click.option("--tensor-parallel", default=1, type=click.IntRange(min=1), metavar="N", help="GPUs of one copy.  [1]")
@click.option("--data-parallel", default=1, type=click.IntRange(min=1), metavar="N", help="Copies.  [1]")
@click.option("--adapters", is_flag=True, help="For a run with LoRA: its adapters alone are sent. On CPUs always.")
@click.option("--port", default=8000, type=click.IntRange(1, 65535), metavar="P", help="[8000]")
@click.option("--host", default="127.0.0.1", help="Address to listen on; any but this machine's own needs a key.")
@click.option("--api-key-env", metavar="NAME", help="Environment variable that holds the server's key.")
@trust_option
def serve(
    model: str,
    options: tuple[str, ...],
    tensor_parallel: int,
    data_parallel: int,
    adapters: bool,
    port: int,
    host: str,
    api_key_env: str | None,
    trusts: bool,
) -> None:
    """Serve a model with vLLM, for runs that sample elsewhere (sampler: vllm_server) and for `rlkit eval --urls`.

    It is vLLM's own server; its own options may stand behind `--`.

    \b
    rlkit serve Qwen/Qwen3-4B-Base --tensor-parallel 2
    rlkit serve runs/vimpo-s-seed0 --port 8001 -- --max-model-len 4096
    """
    from rlkit.assembly.run import prepare_environment
    from rlkit.assembly.sampling import model_of
    from rlkit.serving import command

    prepare_environment()
    command.serve(
        model_of(model, trusts),
        host=host,
        port=port,
        tensor_parallel=tensor_parallel,
        data_parallel=data_parallel,
        adapters=adapters,
        key_variable=api_key_env,
        options=options,
    )
