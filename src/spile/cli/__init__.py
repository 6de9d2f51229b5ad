"""The command line: parses, calls one verb, maps errors to exit codes. No tensors here.

Exit codes: 0 done, 1 the run failed (one line says why and what to do), 2 usage.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Any

import typer

import spile
from spile.cli import augmenting, diagnosing, exporting, extracting, looking, training, transferring
from spile.cli.showing import print_line
from spile.errors import SpileError

__all__ = ["app", "main"]

_INTERRUPTED = 130

_COMMANDS = (
    (
        transferring.demo,
        "Which layer of a network reads handwriting? Offline, a minute.",
        "spile demo --out my-demo",
    ),
    (
        looking.layers,
        "List a model's layers, and what each costs.",
        "spile layers timm:resnet50 --only blocks",
    ),
    (
        extracting.extract,
        "Write activations of many layers of many samples into a store.",
        "spile extract photos/ -m timm:resnet50 -o feats.lance -l 'layer4.*'",
    ),
    (
        transferring.probe,
        "Score every layer of a store, and name the one to use.",
        "spile probe feats.lance --rule 1se",
    ),
    (
        transferring.transfer,
        "Find the best layer for labelled data, fit, save and report.",
        "spile transfer photos/ -m timm:resnet50 -o run --shots 10 --seeds 5",
    ),
    (transferring.predict, "Label new samples with a saved model.", "spile predict run/model new-photos/"),
    (
        exporting.export,
        "Write a saved model as ONNX, OpenVINO, .pt2 or .keras, verified.",
        "spile export run photos/ --formats onnx",
    ),
    (
        training.train,
        "Train a classifier, with heads on its layers or without.",
        "spile train photos/ -m timm:resnet18 --supervise auto --epochs 20",
    ),
    (
        diagnosing.diagnose,
        "Look for wrong labels, near-duplicates, leaks and drift in a store.",
        "spile diagnose feats.lance --data photos/",
    ),
    (
        augmenting.augment,
        "Show what augmentation guided by a layer does to images.",
        "spile augment photos/ -m timm:resnet18 --at layer3 --preview",
    ),
    (looking.report, "Write a run's page again.", "spile report run"),
    (looking.doctor, "Say what is installed, and what to type for what is not.", "spile doctor --json"),
)
"""Each in a few words and with an example, in the order in which the help lists them."""

app = typer.Typer(
    name="spile",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # half of the time to the help went into importing what paints it
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Tap any layer of a PyTorch or Keras 3 model and train with what flows out.",
    epilog="Start with: spile demo",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(f"spile {spile.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None: ...


for _command, _short, _example in _COMMANDS:
    app.command(short_help=_short, epilog=f"Example: {_example}")(_command)


def main() -> None:
    """Run the command line; the entry point of ``spile``."""
    # Threads that spin while they wait for each other crawl on a machine that has other work: five to twenty
    # times slower beside one busy process on two cores. Read when the framework is imported, so set before.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with warnings.catch_warnings():
        warnings.showwarning = _warn  # type: ignore[assignment]
        try:
            app()
            sys.stdout.flush()
        except SpileError as error:
            _fail(str(error))
        except BrokenPipeError:
            # Whoever read the output has enough. What is left unwritten must not fail again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _fail(f"{where}{error.strerror or error}")
        except SystemExit as end:
            if end.code == _INTERRUPTED:
                _say("error", "interrupted; what was committed is kept: type the same command to go on")
            raise


def _fail(message: str) -> None:
    _say("error", message)
    raise SystemExit(1)


def _warn(message: Warning | str, *_: Any) -> None:
    _say("warning", str(message))


def _say(what: str, message: str) -> None:
    sys.stderr.write(f"{what}: {' '.join(message.split())}\n")
