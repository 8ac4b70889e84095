"""Files and folders → documents, read here or by processes beside this one."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from latentrag.corpus.crew import read_with_crew
from latentrag.corpus.readers import File, OnSkip, StrPath, documents, find_files
from latentrag.errors import InputError
from latentrag.types import Document


def read(path: StrPath, *, on_skip: OnSkip | None = None, workers: int = 0) -> Generator[Document]:
    """The documents of a file or folder, in the order of the sorted paths, one at a time.

    Formats, by the end of the name, text in UTF-8 unless the format says otherwise:

    - .txt, .md: a document each.
    - .html, .htm, .xhtml: the page's main text; .pdf: all its pages; .docx: its body. A document each; offsets
      are those in the text that was extracted.
    - .jsonl with the field names of DPR, KILT, BEIR or FlashRAG, or simply ``text`` and perhaps ``title``, ``id``,
      ``source``; .tsv as DPR's psgs_w100.tsv, whose rows are passages already.
    - .xml of MediaWiki (pages-articles) and wiki_00, wiki_01, … of WikiExtractor --json: a document each article.

    The last two kinds may end in .gz or .bz2 too. HTML, PDF and MediaWiki's XML need ``latentrag[documents]``.

    A folder is read with its subfolders. Hidden files are passed over in silence; files of other formats and
    links to folders are left out and reported to ``on_skip``. So is a file in a folder that turns out to be
    unreadable: its documents up to that line have been yielded and stay, the rest of it is left out.

    The id of a document is its row's or page's own, else ``f"{relative path}:{line}"``; of a file that is one
    document it is the relative path. Rows that share an id are not noticed here: that takes memory in proportion to
    the corpus.

    Args:
        path: a file, or a folder.
        on_skip: called with path and reason for each file of a folder that is left out. None: an unreadable
            file in a folder raises, as one that is given directly always does.
        workers: how many processes read, a file each at a time; the documents and their order are the same. A file
            that crashes its process is unreadable, like others. 0: this process reads, and would crash with it.
    Raises: InputError for ``workers`` < 0. DataError. When called: a path that does not exist, or is of another
        format, or of one whose library is not installed. While reading, with the file and where possible the line:
        text that is not UTF-8, malformed rows, incomplete files, PDFs that are encrypted or only pictures, whatever
        the operating system refuses.
    """
    return read_files(find_files(path, on_skip), on_skip, workers=workers)


def read_files(files: Sequence[File], on_skip: OnSkip | None = None, *, workers: int = 0) -> Generator[Document]:
    """The documents of these files, in their order; arguments and errors as in ``read``."""
    if workers < 0:
        raise InputError(f"workers={workers} processes cannot read; pass 1 or more, or 0 for none but this one")
    if workers:
        return read_with_crew(files, on_skip, workers=workers)
    return (document for file in files for document in documents(file, on_skip))
