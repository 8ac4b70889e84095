"""A sync reads files in processes that they may crash or keep busy for ever."""

from tests.corpus import making
from tests.sync.conftest import Synced


def test_a_file_that_never_ends_is_reported_and_the_others_are_synced(synced: Synced):
    synced.write("a.txt", "before")
    synced.write("endless.pdf", making.endless_pdf())
    synced.write("z.txt", "after")
    report = synced.sync(time_limit_s=1)  # in a few seconds it takes more memory than it may
    assert set(synced.texts()) == {"notes/a.txt", "notes/z.txt"}
    ((path, reason),) = report.skipped
    assert path.name == "endless.pdf"
    assert reason == "given up: a document took more than 1 s; remove or repair the file, or raise the limit"
