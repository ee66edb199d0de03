"""See deformable operators at work: a computation of a minute or two, and a figure of it."""

from __future__ import annotations

import argparse
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import cudeform
from cudeform.commands import CommandError, machine, outputs

EXAMPLES = {  # what each is, and its own options
    "photograph": (
        "Align a photograph with a warped copy of itself, by learning where a convolution reads.",
        ("image", "size", "steps", "seed"),
    ),
    "digits": (
        "Compare plain and deformable convolutions on handwritten digits (in a checkout).",
        ("long", "seeds", "steps"),
    ),
    "rois": (
        "Compare poolings of regions on scenes of handwritten digits (in a checkout).",
        ("long", "seeds", "steps"),
    ),
    "detr": (
        "Detect handwritten digits by deformable attention, in PyTorch (in a checkout).",
        ("long", "seeds", "steps"),
    ),
}
EXTRAS = {"detr": "demo,torch"}  # of an example that needs more than "demo"
SIZE, STEPS, SEED = 448, 25, 1  # of the photograph
LEAST = {"size": 16, "steps": 1, "seed": 0, "seeds": 1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "examples:\n" + "\n".join(
        f"  {name:<12} {summary}" for name, (summary, _) in EXAMPLES.items()
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
    parser.add_argument(
        "--steps", type=int, metavar="N", help=f"of gradient descent; photograph: {STEPS}"
    )
    group = parser.add_argument_group("photograph")
    group.add_argument("--image", metavar="FILE", help="default: the cat that scikit-image ships")
    group.add_argument(
        "--size",
        type=int,
        metavar="N",
        help=f"the photograph is reduced to so many pixels along its longer side; default: {SIZE}",
    )
    group.add_argument("--seed", type=int, metavar="N", help=f"of the warp; default: {SEED}")
    training = parser.add_argument_group("digits, rois and detr, see examples/README.md")
    training.add_argument(
        "--long", action="store_const", const=True, help="about an hour on two cores"
    )
    training.add_argument("--seeds", type=int, metavar="N", help="trainings of each network")


def run(given: argparse.Namespace) -> int:
    """Run the example with its own options; those of another one are an error."""
    own = EXAMPLES[given.example][1]
    for name in sorted({name for _, options in EXAMPLES.values() for name in options}):
        if getattr(given, name) is not None and name not in own:
            raise CommandError(f"--{name} is no option of the example {given.example}")
    for name, least in LEAST.items():
        value = getattr(given, name)
        if value is not None and value < least:
            raise CommandError(f"expected --{name} of at least {least}, got {value}")
    if given.output is None:
        given.output = f"cudeform-{given.example}.png"
    script = None if given.example == "photograph" else _script(given.example)
    outputs.check("--output", given.output)
    try:
        from matplotlib.backend_bases import FigureCanvasBase

        formats = FigureCanvasBase.get_supported_filetypes()
        file_format = outputs.figure_format("--output", given.output, formats)
        if script is None:
            return _photograph(given, file_format)
        return _run_script(script, given, own)
    except ImportError as error:
        extra = EXTRAS.get(given.example, "demo")
        raise CommandError(f"{error}: pip install 'cudeform[{extra}]'") from error


def _photograph(given: argparse.Namespace, file_format: str) -> int:
    """Learn, print what came out, and draw it."""
    from rich.console import Console

    from cudeform.demo import figure, image_file, photograph

    xp, device = machine.namespace(given.device)
    steps, seed = (
        default if value is None else value
        for value, default in ((given.steps, STEPS), (given.seed, SEED))
    )
    image = image_file.load(given.image, given.size or SIZE)
    console, started = Console(), time.perf_counter()
    result = photograph.compute(xp, image, steps=steps, seed=seed, console=console)
    seconds = time.perf_counter() - started
    drawn = figure.draw(result)
    try:
        drawn.savefig(given.output, dpi=150, format=file_format)
    except OSError as error:
        raise CommandError(f"cannot write the figure: {error}") from error
    for name, text in (
        ("photograph", given.image or "the cat of scikit-image"),
        ("computed on", device),
        ("time", f"{seconds:.1f} s"),
        *_summary(result),
        ("figure", given.output),
    ):
        print(f"{name:<15} {text}")
    return 0


def _summary(result: Any) -> list[tuple[str, str]]:
    height, width = result.warped.shape[:2]
    before, after = result.psnr
    distance, left = np.linalg.norm(result.true_flow, axis=-1), result.endpoint_error
    return [
        ("size", f"{width} x {height} pixels"),
        ("PSNR", f"{before:.2f} dB before, {after:.2f} dB after"),
        ("endpoint error", f"{distance.mean():.2f} px before, {left.mean():.2f} px after"),
    ]


def _script(example: str) -> Path:
    """The script of an example, which lies beside the package in a checkout and nowhere else."""
    checkout = Path(cudeform.__file__).parents[1]
    script = checkout / "examples" / f"{example}.py"
    if not ((checkout / "setup.cfg").is_file() and script.is_file()):
        raise CommandError(
            f"the example {example} is a script of the checkout and not installed with the "
            f"package: run examples/{example}.py there"
        )
    return script


def _run_script(script: Path, given: argparse.Namespace, options: tuple[str, ...]) -> int:
    """Run it as if it had been called itself."""
    xp, _ = machine.namespace(given.device)
    arguments = ["--output", given.output, "--device", "cpu" if xp is np else "cuda"]
    for name in options:
        value = getattr(given, name)
        if value is not None:
            arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
    return 0
