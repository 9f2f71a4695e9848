"""`play`: a page in the browser, where keys, a pad, a gamepad or the mouse drive what a trained model generates."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Thread

from lightning.pytorch.cli import LightningArgumentParser

from lightning_action.atomic import require_writable
from lightning_action.cli.support.mistakes import UsageError
from lightning_action.cli.support.playable import PlayableCLI, load_stage, require_playable, settings_of
from lightning_action.configuration.ckpt_path import require_checkpoint
from lightning_action.data.split_data import SplitDataModule
from lightning_action.play.access import Access, addresses, choose_token
from lightning_action.play.action_map import default_map, read_action_map
from lightning_action.play.generated import PlaySettings
from lightning_action.play.server import Playground, PlayServer, new_server
from lightning_action.play.session_recording import SessionRecording, claim_folder, require_recordable
from lightning_action.ranges import require_numbers

OF_THE_SERVER = (
    *("host", "port", "token", "max_sessions"),
    *("action_map", "key_strength", "record", "log_dir"),
)


class PlayCLI(PlayableCLI):
    """Adds where the page is, who may play, and what is kept."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        add = parser.add_argument
        add("--host", type=str, default="127.0.0.1", help="Address that is listened at; 0.0.0.0 lets others in.")
        add("--port", type=int, default=8000, help="Port; 0 takes a free one.")
        add(
            "--token",
            type=str | None,
            default=None,
            help="Token that players must show; default: none on this machine alone, else a new one, which is printed.",
        )
        add("--action_map", type=str | None, default=None, help="YAML file of what is held and what it does.")
        add("--key_strength", type=float, default=0.5, help="Share of the way to a bound that a key goes, by default.")
        add("--max_sessions", type=int, default=4, help="Largest number of players at a time.")
        add("--record", type=str | None, default=None, help="Folder in which each session is recorded.")
        add("--log_dir", type=str | None, default=None, help="Folder of a TensorBoard run of the latencies.")


def run_play(args: Sequence[str]) -> None:
    """Open a page on which a trained model is played: `--config` and `--ckpt_path` name the run.

    The page is there at once and shows how far the loading is. Ctrl-C ends it.
    """
    require_extra()
    cli = PlayCLI("play", run_play.__doc__, args)
    config = cli.config
    require_checkpoint("play", config.ckpt_path)
    data = require_playable(cli.model, cli.datamodule)
    settings = settings_of(config, Path(str(config.trainer.default_root_dir or config.ckpt_path)).name)
    require_numbers({"max_sessions": config.max_sessions}, 1, whole=True)
    if config.action_map is not None and not Path(config.action_map).is_file():
        raise FileNotFoundError(f"no action map at {config.action_map!r}")
    for option in ("record", "log_dir"):
        if config[option] is not None:
            require_writable(Path(config[option]), f"--{option}")
    token = choose_token(config.host, config.token)
    with listen_at(config.host, config.port) as listening:
        access = Access(token, listening.getsockname()[1], any_name=token is not None)
        server = PlayServer(access, config.max_sessions)
        serve(server, listening, partial(load, server, cli, data, settings))


def require_extra() -> None:
    """Refuse to begin without the packages of the extra.

    Raises:
        ImportError: A package that `play` needs is missing.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise ImportError(f"play needs {error.name}: pip install 'lightning_action[play]'") from error


def listen_at(host: str, port: int) -> socket.socket:
    """Listen at a port; 0 finds a free one.

    Raises:
        ValueError: The port is no port, or taken; or the host is not this machine's.
    """
    require_numbers({"port": port}, 0, 65535, whole=True)
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(place[:2], family=family)
    except OSError as error:
        raise UsageError(f"cannot listen at {host}:{port} ({error.strerror}): give another --port or --host") from error


def load(server: PlayServer, cli: PlayCLI, data: SplitDataModule, settings: PlaySettings) -> None:
    """Load what is played, and let waiting pages have it."""

    def tell(doing: str, share: float) -> None:
        server.progress.doing, server.progress.share = doing, share
        print(f"  {doing}", flush=True)

    config = cli.config
    stage = load_stage(cli, data, settings, {"config": list(map(str, config.config or []))}, tell)
    if config.action_map is None:
        action_map = default_map(stage.schema, config.key_strength)
    else:
        action_map = read_action_map(Path(config.action_map), stage.schema)
    new_observer = None
    if config.record is not None:
        require_recordable(stage)
        new_folder = partial(claim_folder, Path(config.record))
        new_observer = partial(SessionRecording, new_folder, stage, what_is_played(cli))
    log = None
    if config.log_dir is not None:
        from torch.utils.tensorboard import SummaryWriter

        log = SummaryWriter(str(Path(config.log_dir)))
    server.playground = Playground(stage, action_map, new_observer, log)


def what_is_played(cli: PlayCLI) -> str:
    """Write out the configuration, without what is about the server: a token is not to be found in a recording."""
    kept = cli.config.clone()
    for name in OF_THE_SERVER:
        del kept[name]
    text: str = cli.parser.dump(kept)
    return text


def serve(server: PlayServer, listening: socket.socket, loading: Callable[[], None]) -> None:
    """Serve until Ctrl-C, while the loading goes on in a thread; what fails there ends the server and is raised."""
    uvicorn = new_server(server.app())
    failures: list[BaseException] = []

    def load_and_tell() -> None:
        try:
            loading()
        except BaseException as error:
            failures.append(error)
            server.progress.failed = "loading has failed: see the server's output"
            time.sleep(1)  # for the pages that wait, to show it
            uvicorn.should_exit = True

    here, *elsewhere = addresses(listening.getsockname()[0], server.access.port, server.access.token)
    hints = [f"  from other machines, by this one's name or number: {each}" for each in elsewhere]
    print(f"play at {here}", *hints, sep="\n", flush=True)
    Thread(target=load_and_tell, name="loading", daemon=True).start()
    uvicorn.run(sockets=[listening])
    if failures:
        raise failures[0]
    # Nothing else ends it; the server hands the signal on, unless its loop has ended before.
    raise KeyboardInterrupt
