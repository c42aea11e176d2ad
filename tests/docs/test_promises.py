"""Each event of the page on long runs, and each promise of the page on security, has a test that holds it."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
DOCS = TESTS.parent / "docs"

TRAINING = {
    "The process is killed, also": "training/test_faults.py::test_many_killed_runs",
    "Ctrl-C is pressed once.": "training/test_faults.py::test_ctrl_c_saves_and_ends_training_but_not_the_script",
    "Ctrl-C is pressed twice.": "training/test_signals.py::test_a_second_ctrl_c_does_not_wait",
    "SIGTERM is received, alone": "training/test_signals.py::test_a_sigterm_takes_its_usual_course_whatever_else_comes",
    "The disk is full": "training/test_faults.py::test_the_module_has_its_weights_where_no_checkpoint_can_be_written",
    "The newest": "training/test_damaged_checkpoints.py::test_a_bad_checkpoint_is_refused_and_the_last_good_one_used",
    "All ": "training/test_damaged_checkpoints.py::test_without_a_valid_checkpoint_no_run_starts_again",
    "Another run uses": "test_folder_lock.py::test_a_second_run_is_refused_and_changes_nothing",
}
EVALUATION = {
    "The process is killed, also": "evaluation/test_faults.py::test_every_estimator_is_killed_and_continues",
    "Ctrl-C is pressed.": "evaluation/test_interruptions.py::test_ctrl_c_returns_the_finished_rows_of_every_estimator",
    "SIGTERM ": "evaluation/test_interruptions.py::test_a_sigterm_ends_the_process_and_loses_no_finished_row",
    "A datum fails.": "truth/test_failing_data.py::test_log_likelihood_of_a_datum_that_fails",
    "The disk is full": "evaluation/test_checkpoint.py::test_a_disk_that_is_full_or_read_only",
    "The folder cannot be made.": "evaluation/test_checkpoint.py::test_paths",
    "The file of rows": "evaluation/test_checkpoint.py::test_a_damaged_file_is_refused",
    "The folder holds rows": "evaluation/test_checkpoint.py::test_rows_of_other_data_or_parameters_are_refused_by_name",
    "Another run uses": "evaluation/test_faults.py::test_two_starts_on_one_folder",
}
SECURITY = {
    "Checked before use.": "data/test_security.py::test_a_file_of_another_content_is_refused_before_it_is_read",
    "Parsed after the check": "data/test_security.py::test_an_array_of_another_content_is_refused",
    "Never unpacked.": "data/test_security.py::test_archives_leave_nothing_outside_or_inside_their_folder",
    "Never run.": "data/test_security.py::test_pickles_of_cifar10_run_nothing",
    "Bounded.": "data/test_security.py::test_rows_are_counted_before_they_are_read",
    "Downloaded to": "data/test_download.py::test_an_interrupted_download_leaves_nothing",
    "No code.": "training/test_saving.py::test_bad_files_are_refused_and_no_code_is_run",
    "Description first.": "test_archives.py::test_another_run_is_refused_before_the_tensors_are_read",
    "Bounded": "test_archives.py::test_a_small_file_with_large_tensors_is_refused",
    "Checksum.": "training/test_damaged_checkpoints.py::test_a_bad_checkpoint_is_refused_and_the_last_good_one_used",
}


def events(section: str) -> list[str]:
    """Return the first column of the table of events in a section of the page on long runs."""
    page = (DOCS / "long_runs.md").read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    table = page.split("| event | consequence |\n| --- | --- |\n")[1].split("\n\n")[0]
    return [line.split("|")[1].strip() for line in table.splitlines()]


def promises() -> list[str]:
    return re.findall(r"^- \*\*(.+?)\*\*", (DOCS / "security.md").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("stated", "held"),
    [
        (events("Save checkpoints and resume training"), TRAINING),
        (events("Save checkpoints of an evaluation"), EVALUATION),
        (promises(), SECURITY),
    ],
    ids=["training", "evaluation", "security"],
)
def test_every_promise_has_a_test(stated: list[str], held: dict[str, str]) -> None:
    assert len(stated) == len(held)
    for promise, (start, test) in zip(stated, held.items(), strict=True):
        assert promise.startswith(start)
        file, name = test.split("::")
        assert f"\ndef {name}(" in (TESTS / file).read_text(), test
