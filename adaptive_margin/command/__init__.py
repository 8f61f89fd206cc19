"""The command ``adaptive-margin``: trains, reports, predicts, exports, suggests, checks. ``adaptive-margin --help``
lists it.

Each row of :data:`COMMANDS` is a module here with the same name. Help and mistakes are answered without PyTorch.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from ..messages import nearest, said_plainly
from ..processes import ends_in_order, ends_with_reader

COMMANDS = {
    "train-faces": "train valence and arousal from faces, with the paper's critic or another",
    "train-retrieval": "train embeddings for retrieval, with fixed and adaptive margins",
    "report": "one HTML file about a run, or about many",
    "predict": "valence and arousal of the faces in images and videos",
    "export-onnx": "write a trained network as ONNX, checked against PyTorch",
    "export-hub": "write a trained network as a folder for a hub: safetensors, JSON, a model card",
    "suggest": "which margin suits these embeddings, and what each would keep active",
    "check": "say which data set a folder contains and which of its rows can be used",
}


@ends_with_reader()
def main(argv: Sequence[str] | None = None) -> int:
    """The command line; ``adaptive-margin --help`` explains it.

    Args:
        argv: arguments without the program's name; by default those of the process.

    Returns:
        0 on success, 1 if something could not be done, 130 after Ctrl-C.

    Raises:
        SystemExit: with code 2, after one line about an option or a file that has to be changed; with code 1, after one
            about something that could not be done; with code 143, after SIGTERM; with code 141, when nobody reads what
            it prints.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else "--help"
    if name in ("--help", "-h"):
        lines = [f"  {each:16} {what}" for each, what in COMMANDS.items()]
        print("\n".join(["usage: adaptive-margin COMMAND [OPTIONS]", "       adaptive-margin --version", "", *lines]))
        print("\nadaptive-margin COMMAND --help lists the options of one.")
    elif name == "--version":
        print(f"adaptive-margin {__version__}")
    elif name not in COMMANDS:
        print(f"error: unknown command {name}; {nearest(name, COMMANDS)}", file=sys.stderr)
        return 2
    else:
        try:
            with ends_in_order(), said_plainly():
                command = import_module(f".{name.replace('-', '_')}", __name__)
                return int(command.main(words[1:], f"adaptive-margin {name}"))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
    return 0 if words else 2
