"""Serves a package over HTTP: rows in, probabilities out. docs/a_service.md shows it at work.

``python examples/service packages/current --port 8000``
"""

import argparse
from pathlib import Path

import torch
import uvicorn
import uvloop
from app import App, Limits
from exchange import Exchange

from torchrec_mtl.errors import InputError


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="service", description=__doc__.splitlines()[0])
    options.add_argument("package", type=Path, help="a package, or a link to one; when it is another, that is taken")
    options.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s, this machine alone)")
    options.add_argument("--port", type=int, default=8000, help="port to listen at, 0 for any (%(default)s)")
    options.add_argument("--threads", type=int, default=1, help="threads of PyTorch (%(default)s)")
    for name, default in vars(Limits()).items():
        flag = "--" + name.replace("_", "-")
        options.add_argument(flag, type=type(default), default=default, help=f"{Limits.SAYS[name]} (%(default)s)")
    return options


async def serve(args: argparse.Namespace) -> None:
    limits = Limits(**{name: getattr(args, name) for name in vars(Limits())})
    app = App(Exchange(args.package), limits)
    config = uvicorn.Config(
        app,
        host=args.host,
        port=args.port,
        http="httptools",
        lifespan="on",
        access_log=False,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=10,
        server_header=False,
    )
    await uvicorn.Server(config).serve()


def main() -> None:
    args = parser().parse_args()
    torch.set_num_threads(args.threads)
    try:
        uvloop.run(serve(args))
    except InputError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
