"""See deformable operators at work: a computation of a minute or two, and a figure of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from cudeform.commands import CommandError, digits, photograph, rois

__all__ = ["add_arguments", "run"]

EXAMPLES = {"photograph": photograph, "digits": digits, "rois": rois}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "examples:\n" + "\n".join(
        f"  {name:<12} {module.__doc__.splitlines()[0]}" for name, module in EXAMPLES.items()
    )
    parser.add_argument(
        "example",
        nargs="?",
        choices=EXAMPLES,
        default="photograph",
        metavar="EXAMPLE",
        help=f"{', '.join(EXAMPLES)}, see below; default: %(default)s",
    )
    parser.add_argument(
        "--output", metavar="FILE", help="the figure; default: cudeform-EXAMPLE.png"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="default: the GPU where CuPy finds one"
    )
    photograph.add_arguments(parser.add_argument_group("photograph"))
    training = parser.add_argument_group("digits and rois")
    training.add_argument(
        "--long",
        action="store_const",
        const=True,
        help="ten times the steps, five trainings of each network, and for the digits a wider "
        "plain one, with as many parameters as the largest of the others; takes about an hour on "
        "two cores, where the quick form takes one to two minutes",
    )
    training.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help="trainings of each network; default: 3 for the digits, 2 for the rois, 5 with --long",
    )


def run(given: argparse.Namespace) -> int:
    """Run the example with its own options; those of another one are an error."""
    chosen = EXAMPLES[given.example]
    for module in EXAMPLES.values():
        for name in module.DEFAULTS.keys() - chosen.DEFAULTS:
            if getattr(given, name) is not None:
                raise CommandError(f"--{name} is no option of the example {given.example}")
    for name, default in {**chosen.DEFAULTS, "output": f"cudeform-{given.example}.png"}.items():
        if getattr(given, name) is None:
            setattr(given, name, default)
    if not Path(given.output).parent.is_dir():
        raise CommandError(f"cannot write the figure: no folder {Path(given.output).parent}")
    try:
        figure = chosen.run(given)
    except ImportError as error:
        raise CommandError(f"{error}: pip install 'cudeform[demo]'") from error
    try:
        figure.savefig(given.output, dpi=150)
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot write the figure: {error}") from error
    print(f"{'figure':<15} {given.output}")
    return 0
