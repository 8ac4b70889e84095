"""Every option once: name, default, help and limits, from which commands, HTTP API and Python take them.

Options are fields of frozen dataclasses, each annotated with an ``Option``; what they do is said in the docstring:

    Attributes:
        num_beams: Hypotheses kept alive.

    num_beams: Annotated[int, Option(name="beams", ge=1)] = 4

A command takes such a dataclass as one parameter (``cli.arguments.command``), the API makes its schema from it
(``serving.schemas``), and Python constructs it. Nothing here imports anything heavy.
"""

from latentrag.options.answers import (
    OF_SAMPLING,
    OF_SEARCH,
    AnswerOptions,
    AskOptions,
    ConfidenceOptions,
    DecodingOptions,
    Defaults,
    EvidenceOptions,
    OneAnswerOptions,
    RetrievalOptions,
    chosen_options,
    decoding_options,
    options_of_answers,
)
from latentrag.options.declaring import Given, Option, OptionField, check_options, options_of
from latentrag.options.files import (
    MEMORY_LIMIT,
    MIN_MEMORY_LIMIT_BYTES,
    TIME_LIMIT_S,
    FileOptions,
    GivenOptions,
    MakingOptions,
    PreviewOptions,
    RankingOptions,
    ReadingOptions,
    RowOptions,
    SyncOptions,
    size_in_bytes,
)
from latentrag.options.systems import (
    DEMO,
    DEMOS,
    KEY_VARIABLE,
    PASSAGE_FOLDER_BYTES,
    CacheMemory,
    DeviceOptions,
    Dtype,
    EncoderOptions,
    FilterOptions,
    GeneratorOptions,
    MemoryOptions,
    ModelOptions,
    PassageEncoderOptions,
    PlaceOptions,
    SystemOptions,
    VectorOptions,
    VersionOptions,
    require_encoder,
)

__all__ = [
    "DEMO",
    "DEMOS",
    "KEY_VARIABLE",
    "MEMORY_LIMIT",
    "MIN_MEMORY_LIMIT_BYTES",
    "OF_SAMPLING",
    "OF_SEARCH",
    "PASSAGE_FOLDER_BYTES",
    "TIME_LIMIT_S",
    "AnswerOptions",
    "AskOptions",
    "CacheMemory",
    "ConfidenceOptions",
    "DecodingOptions",
    "Defaults",
    "DeviceOptions",
    "Dtype",
    "EncoderOptions",
    "EvidenceOptions",
    "FileOptions",
    "FilterOptions",
    "GeneratorOptions",
    "Given",
    "GivenOptions",
    "MakingOptions",
    "MemoryOptions",
    "ModelOptions",
    "OneAnswerOptions",
    "Option",
    "OptionField",
    "PassageEncoderOptions",
    "PlaceOptions",
    "PreviewOptions",
    "RankingOptions",
    "ReadingOptions",
    "RetrievalOptions",
    "RowOptions",
    "SyncOptions",
    "SystemOptions",
    "VectorOptions",
    "VersionOptions",
    "check_options",
    "chosen_options",
    "decoding_options",
    "options_of",
    "options_of_answers",
    "require_encoder",
    "size_in_bytes",
]
