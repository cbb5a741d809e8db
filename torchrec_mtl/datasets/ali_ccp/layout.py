"""The format of the raw Ali-CCP files: a regular expression for lines, and the reason why a line does not match.

The files have no header. Lines end in "\\n"::

    sample_skeleton_{train,test}.csv  sample_id,click,purchase,common_feature_index,feature_num,feature_list
    common_features_{train,test}.csv  common_feature_index,feature_num,feature_list

A feature list is joined by ``\\x01``; a feature is ``FIELD \\x02 ID \\x03 VALUE``. Features come in any order, and a
field may have several. A value is 1.0, or the logarithm of a count.
"""

import re

from torchrec_mtl.data.raw.lines import CARRIAGE_RETURN
from torchrec_mtl.errors import shown

RAW_SPLITS = ("train", "test")
LABELS = ("click", "purchase")
USER, ITEM, CROSS, CONTEXT = (
    ("101", "121", "122", "124", "125", "126", "127", "128", "129", "109_14", "110_14", "127_14", "150_14"),
    ("205", "206", "207", "210", "216"),
    ("508", "509", "702", "853"),
    ("301",),
)
FIELDS = (*USER, *ITEM, *CROSS, *CONTEXT)
USER_ID = "101"

NUMBER = "[1-9][0-9]{0,17}"  # below 10^18, so that it fits int64; a leading zero would be lost
VALUE = r"-?[0-9]{1,9}(?:\.[0-9]{1,17})?"
FEATURE = f"(?:{'|'.join(FIELDS)})\x02{NUMBER}\x03{VALUE}"
COLUMNS = {
    "sample_id": (NUMBER, "an integer of at least 1"),
    "click": ("[01]", "0 or 1"),
    "purchase": ("[01]", "0 or 1"),
    "common_feature_index": ("[0-9a-f]{16}", "16 hexadecimal digits"),
    "feature_num": ("[0-9]{1,6}", "an integer below 1000000"),
}
SKELETON = tuple(COLUMNS)
COMMON = ("common_feature_index", "feature_num")


def line_pattern(columns: tuple[str, ...]) -> str:
    """Returns the regular expression of a whole line; it does not check that ``feature_num`` fits the features."""
    return f"{','.join(COLUMNS[column][0] for column in columns)},{FEATURE}(?:\x01{FEATURE})*"


def reason(columns: tuple[str, ...], line: str) -> str:
    """Returns why ``line`` is bad: the first rule that it breaks.

    Example::

        >>> reason(COMMON, "84dceed2e3a667f8,2,101\\x0231319\\x031.0")
        '`feature_num` (=2) must be the number of features (1)'
    """
    if line.endswith("\r"):
        return CARRIAGE_RETURN
    values = line.split(",")
    if len(values) != len(columns) + 1:
        return f"must have {len(columns) + 1} columns, not {len(values)}"
    for column, value in zip(columns, values, strict=False):
        pattern, rule = COLUMNS[column]
        if not re.fullmatch(pattern, value):
            return f"`{column}` (={_shorten(value)}) must be {rule}{_header_hint(columns, values)}"
    features = values[-1].split("\x01")
    for feature in features:
        if feature_reason := _feature_reason(feature):
            return feature_reason
    return f"`feature_num` (={shown(values[-2])}) must be the number of features ({len(features)})"


def _header_hint(columns: tuple[str, ...], values: list[str]) -> str:
    return "; the file must have no header" if values[: len(columns)] == list(columns) else ""


def _feature_reason(feature: str) -> str | None:
    parts = re.split("[\x02\x03]", feature)
    if len(parts) != 3 or not re.fullmatch("[^\x02\x03]*\x02[^\x02\x03]*\x03[^\x02\x03]*", feature):
        return f"feature {_shorten(feature)} must be a field, \\x02, an id, \\x03 and a value"
    field, number, value = parts
    if field not in FIELDS:
        return f"field {_shorten(field)} of a feature must be one of {list(FIELDS)}"
    if not re.fullmatch(NUMBER, number):
        return f"id {_shorten(number)} of field {field!r} must be an integer of at least 1 and below 10^18"
    if not re.fullmatch(VALUE, value):
        return f"value {_shorten(value)} of field {field!r} must be a decimal number"
    return None


def _shorten(text: str) -> str:
    return shown(repr(text if len(text) <= 60 else text[:60] + "..."))
