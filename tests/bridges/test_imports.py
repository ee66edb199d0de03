"""What follows the import of a framework: in either order, once, and without disturbing it."""

import pytest
from processes import python


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "framework.py").write_text("print('framework', end=' ')\nready = True\n")
    (tmp_path / "broken.py").write_text("print('broken', end=' ')\n1 / 0\n")
    ours = "import framework\nassert framework.ready\nprint('ours', end=' ')\n"
    (tmp_path / "ours.py").write_text(ours)
    (tmp_path / "useless.py").write_text("raise AttributeError('too old')\n")
    return tmp_path


def run(folder, *lines):
    code = [f"import sys; sys.path.insert(0, {str(folder)!r})"]
    return python("\n".join([*code, "from cudeform import imports", *lines]))


def test_whichever_comes_first(folder):
    follow = "imports.follow('framework', 'ours')"
    assert run(folder, "import framework", follow, follow) == "framework ours "
    assert run(folder, follow, "import framework", "import framework") == "framework ours "
    assert run(folder, follow) == ""


def test_the_framework_stays_what_it_is(folder):
    lines = [
        "imports.follow('framework', 'ours')",
        "import framework, importlib",
        "assert framework.__spec__.loader is framework.__loader__",
        "assert 'exec_module' not in vars(framework.__loader__)",
        "assert not any(type(f).__name__ == '_Follower' and f._framework == 'framework'",
        "               for f in sys.meta_path)",
        "importlib.reload(framework)",
    ]
    assert run(folder, *lines) == "framework ours framework "


def test_errors_stay_whose_they_are(folder):
    """One in a framework is raised, and its next import may succeed; one in ours is a warning."""
    tried = "try:\n    import broken\nexcept ZeroDivisionError:\n    print('raised', end=' ')"
    assert run(folder, "imports.follow('broken', 'ours')", tried) == "broken raised "
    said = run(folder, "imports.follow('framework', 'useless')", "import framework; print('on')")
    assert said.startswith("framework on\n")
    assert "RuntimeWarning: cudeform: useless cannot be used; AttributeError: too old" in said
    missing = "try:\n    import nowhere\nexcept ModuleNotFoundError:\n    print('missing')"
    assert run(folder, "imports.follow('nowhere', 'ours')", missing) == "missing\n"
