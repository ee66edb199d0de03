"""`python -m cudeform demo`: the photograph, whatever file it is in, and where the figure goes."""

import re
from pathlib import Path

import numpy as np
import pytest
from command_line import broken_module, run

from cudeform import __main__ as command_line
from cudeform.commands import CommandError


class TestDemo:
    @pytest.fixture(autouse=True)
    def extras(self):
        for name in ("matplotlib", "rich", "skimage"):
            pytest.importorskip(name)

    def test_aligns_a_small_photograph(self, tmp_path):
        arguments = ("--size", 64, "--steps", 15, "--device", "cpu", "--output", "figure.png")
        done = run(tmp_path, "demo", *arguments)
        assert done.returncode == 0, done.stderr
        before, after = map(
            float, re.search(r"PSNR +([\d.]+) dB before, ([\d.]+) dB after", done.stdout).groups()
        )
        assert after > before + 6
        assert "64 x 43 pixels" in done.stdout
        assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")

    def test_takes_a_file(self, tmp_path):
        from skimage import io

        grey = (np.random.default_rng(0).random((40, 50)) * 255).astype(np.uint8)
        io.imsave(tmp_path / "grey.png", grey, check_contrast=False)
        done = run(tmp_path, "demo", "--image", "grey.png", "--steps", 2, "--output", "out.pdf")
        assert done.returncode == 0, done.stderr
        assert re.search(r"photograph +grey.png\n.*\bsize +50 x 40 pixels", done.stdout, re.DOTALL)
        assert (tmp_path / "out.pdf").read_bytes().startswith(b"%PDF")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        {
            "--image absent.png": "no such file: absent.png",
            "--image text.png": "cannot read text.png: it is no image that Pillow knows",
            "--image text.tif": "cannot read text.tif: ",
            "--image .": "expected --image to be a file, got the folder .",
            "--device cuda": "no GPU to compute on",
            "--size 8": "expected --size of at least 16, got 8",
            "--steps 0": "expected --steps of at least 1, got 0",
            "--seed -1": "expected --seed of at least 0, got -1",
            "--output .": "expected --output to be a file, got the folder .",
            "--output no/where.png": "cannot write --output no/where.png: no folder no",
            "--output /dev/full/x.png": "cannot write --output /dev/full/x.png: no folder",
            "--output figure.txt": "expected the suffix of --output to be png, pdf, svg or",
        }.items(),
    )
    def test_bad_input(self, tmp_path, monkeypatch, capsys, arguments, message):
        from cudeform.demo import photograph

        monkeypatch.setattr(photograph, "compute", None)  # nothing is computed before
        monkeypatch.chdir(tmp_path)
        for name in ("text.png", "text.tif"):
            (tmp_path / name).write_text("not an image")
        before = sorted(tmp_path.iterdir())
        assert command_line.main(["demo", *arguments.split()]) == 2
        shown = capsys.readouterr().err
        assert shown.startswith(f"cudeform demo: {message}")
        assert shown.count("\n") == 1
        assert sorted(tmp_path.iterdir()) == before

    def test_an_unwritable_file_is_refused_first(self, tmp_path, monkeypatch, capsys):
        def refuse(self, mode="r"):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
        assert command_line.main(["demo", "--output", str(tmp_path / "figure.png")]) == 2
        assert "figure.png: Permission denied" in capsys.readouterr().err

    @pytest.mark.parametrize("size", [(8, 8), (8, 128), (50, 12)])
    def test_tiny_photographs_and_no_suffix(self, tmp_path, monkeypatch, capsys, size):
        from PIL import Image

        monkeypatch.chdir(tmp_path)
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save("tiny.png")
        arguments = ["--image", "tiny.png", "--steps", "1", "--device", "cpu"]
        assert command_line.main(["demo", *arguments, "--output", "figure"]) == 0
        assert "figure          figure\n" in capsys.readouterr().out
        assert (tmp_path / "figure").read_bytes().startswith(b"\x89PNG")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["figure", "tiny.png"]

    @pytest.mark.parametrize("name", ["rich", "matplotlib", "skimage"])
    def test_missing_extra(self, tmp_path, name):
        broken_module(tmp_path, name)
        done = run(tmp_path, "demo", path=[tmp_path])
        assert done.returncode == 2
        assert "pip install 'cudeform[demo]'" in done.stderr
        assert "Traceback" not in done.stderr


class TestImageFile:
    """Whatever the file, the same picture: a ramp that is dark at the left and at the top."""

    RAMP = np.add.outer(np.arange(0, 80, 4), np.arange(0, 150, 5))[..., None] + np.array([0, 9, 20])

    @pytest.fixture(autouse=True)
    def extras(self):
        for name in ("rich", "skimage"):
            pytest.importorskip(name)

    def load(self, file, size=448):
        from cudeform.demo import image_file

        return image_file.load(str(file), size)

    def check(self, file, atol=1e-6):
        image = self.load(file)
        assert image.dtype == np.float64
        np.testing.assert_allclose(image, self.RAMP / 255, atol=atol)

    @pytest.mark.parametrize(
        ("factor", "dtype"),
        [(1, "u1"), (257, "u2"), (1, "f4"), (1 / 255, "f4"), (1 / 255, "f8"), (1, "i4")],
    )
    def test_numbers_of_any_range(self, tmp_path, factor, dtype):
        tifffile = pytest.importorskip("tifffile")
        values = (self.RAMP * factor).astype(dtype)
        tifffile.imwrite(tmp_path / "ramp.tif", values, photometric="rgb")
        self.check(tmp_path / "ramp.tif")

    @pytest.mark.parametrize("name", ["ramp.png", "ramp.gif", "ramp.webp", "ramp.jpg"])
    def test_formats(self, tmp_path, name):
        from PIL import Image

        picture = Image.fromarray(self.RAMP.astype(np.uint8))
        more = {"quality": 95} if name.endswith(("webp", "jpg")) else {}
        picture.save(tmp_path / name, **more)
        self.check(tmp_path / name, atol=0.06)

    def test_first_picture_of_an_animation(self, tmp_path):
        from PIL import Image

        picture = Image.fromarray(self.RAMP.astype(np.uint8))
        turned = picture.transpose(Image.Transpose.ROTATE_180)
        picture.save(tmp_path / "ramp.gif", save_all=True, append_images=[turned, turned])
        self.check(tmp_path / "ramp.gif", atol=0.06)

    @pytest.mark.parametrize(("orientation", "back"), [(3, 180), (6, 90), (8, 270)])
    def test_orientation(self, tmp_path, orientation, back):
        from PIL import Image

        picture = Image.fromarray(self.RAMP.astype(np.uint8)).rotate(back, expand=True)
        exif = picture.getexif()
        exif[0x0112] = orientation
        picture.save(tmp_path / "ramp.png", exif=exif)
        self.check(tmp_path / "ramp.png")

    def test_grey_of_16_bits(self, tmp_path):
        from PIL import Image

        Image.fromarray((self.RAMP[..., 0] * 257).astype(np.uint16)).save(tmp_path / "grey.png")
        expected = self.RAMP[..., :1].repeat(3, axis=2) / 255
        np.testing.assert_allclose(self.load(tmp_path / "grey.png"), expected, atol=1e-6)

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.full((20, 20, 3), -1.0, np.float32), "got float32 from -1 to -1"),
            (np.full((20, 20, 3), np.nan, np.float32), "got float32 from nan to nan"),
            (np.zeros((7, 20, 3), np.float32), "at least 8 x 8 pixels"),
            (np.zeros((8, 300, 3), np.float32), "got 300 x 8"),
        ],
    )
    def test_what_is_no_photograph(self, tmp_path, array, message):
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(tmp_path / "array.tif", array, photometric="rgb")
        with pytest.raises(CommandError, match=message):
            self.load(tmp_path / "array.tif")
