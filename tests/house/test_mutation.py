"""python -m tests.mutation draws mutants of every folder, and knows tests for each of its files."""

import ast

from checkout import ROOT
from mutation.mutants import FOLDERS, draw
from mutation.stages import stages


def test_mutants_are_one_line_of_valid_source_and_the_same_again():
    drawn = draw(ROOT, 10 * len(FOLDERS), seed=3)
    assert drawn == draw(ROOT, 10 * len(FOLDERS), seed=3)
    assert len(set(drawn)) == 10 * len(FOLDERS)
    for mutant in drawn:
        source = (ROOT / mutant.file).read_text()
        text = mutant.text(source)
        assert sum(a != b for a, b in zip(source.split("\n"), text.split("\n"), strict=True)) == 1
        if mutant.file.endswith(".py"):
            assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(source)), mutant


def test_every_file_has_tests():
    for names in FOLDERS.values():
        files = [path for name in names for path in ROOT.glob(name)]
        assert files, names
        for file in files:
            words = [w for s in stages(file.relative_to(ROOT).as_posix()) for w in s]
            tests = [word for word in words if word.endswith(".py")]
            assert tests and all((ROOT / test).exists() for test in tests), file
