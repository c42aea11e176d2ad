"""The page on security lists the licence of every package that is installed with pyrovae, as the package states it."""

from fnmatch import fnmatch

from tests.docs.licences import READ, all_installed, licence, listed


def test_every_dependency_is_listed_with_its_licence() -> None:
    rows, found = listed(), all_installed()
    assert "torch" in found
    stated = {name: licence(name) for name in found}
    shown = {name: next((rows[key] for key in rows if fnmatch(name, key)), "not listed") for name in found}
    assert shown == stated  # python -m tests.docs.licences writes the table


def test_licences_that_were_read_by_hand_are_listed() -> None:
    assert READ.items() <= listed().items()
