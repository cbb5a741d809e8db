"""The formats of the four raw files: headers, and the values that each column may have."""

import re
from dataclasses import dataclass

import polars as pl

from torchrec_mtl.data.raw.lines import CARRIAGE_RETURN
from torchrec_mtl.errors import shown

TAGS = ("pv", "cart", "fav", "buy")


@dataclass(frozen=True)
class Column:
    """A column of a raw file.

    Args:
        name: name of the column, without the trailing space that the file has in one of them.
        pattern: regular expression of a value.
        rule: the pattern in words.
        dtype: type that Polars reads the column as.
        optional: whether the value may be missing, which is written as nothing or as ``NULL``.
    """

    name: str
    pattern: str = r"[0-9]{1,18}"
    rule: str = "must be an integer of at least 0 and at most 18 digits"
    dtype: pl.DataType | type[pl.DataType] = pl.Int64
    optional: bool = False


@dataclass(frozen=True)
class Format:
    """The format of a raw file.

    Args:
        name: name of the file.
        columns: columns in order.
        header: first line of the file, if it differs from the names of the columns.
    """

    name: str
    columns: tuple[Column, ...]
    header: str = ""

    @property
    def first_line(self) -> str:
        """The header of the file."""
        return self.header or ",".join(column.name for column in self.columns)

    @property
    def pattern(self) -> str:
        """Regular expression of a whole line."""
        parts = [f"(?:{column.pattern}{'|NULL|' if column.optional else ''})" for column in self.columns]
        return ",".join(parts)

    @property
    def schema(self) -> pl.Schema:
        """Types that Polars reads the columns as."""
        return pl.Schema({column.name: column.dtype for column in self.columns})

    def reason(self, line: str) -> str:
        """Returns why ``line`` does not match."""
        if line.endswith("\r"):
            return CARRIAGE_RETURN
        values = line.split(",")
        if len(values) != len(self.columns):
            return f"must have {len(self.columns)} values, not {len(values)}"
        for column, value in zip(self.columns, values, strict=True):
            missing = column.optional and value in ("", "NULL")
            if not missing and not re.fullmatch(column.pattern, value):
                return f"`{column.name}` (={shown(repr(value))}) {column.rule}" + (
                    ", or missing" if column.optional else ""
                )
        raise AssertionError(line)


def _bit(name: str) -> Column:
    return Column(name, "[01]", "must be 0 or 1", pl.UInt8)


def _time_stamp() -> Column:
    return Column("time_stamp", "[0-9]{1,10}", "must be seconds since 1970, of at most 10 digits")


PROFILE = (
    "cms_segid",
    "cms_group_id",
    "final_gender_code",
    "age_level",
    "pvalue_level",
    "shopping_level",
    "occupation",
    "new_user_class_level",
)
AD = ("adgroup_id", "cate_id", "campaign_id", "customer", "brand", "price")

RAW_SAMPLE = Format(
    "raw_sample.csv",
    (
        Column("user"),
        _time_stamp(),
        Column("adgroup_id"),
        Column(
            "pid", r"[0-9]{1,9}_[0-9]{1,9}", "must be two integers of at most 9 digits with _ between them", pl.String
        ),
        _bit("nonclk"),
        _bit("clk"),
    ),
)
AD_FEATURE = Format(
    "ad_feature.csv",
    (
        *(Column(name, optional=name == "brand") for name in AD[:-1]),
        Column("price", r"[0-9]{1,15}(\.[0-9]{1,15})?(E[0-9]{1,2})?", "must be a number of at least 0", pl.Float64),
    ),
)
USER_PROFILE = Format(
    "user_profile.csv",
    (Column("userid"), *(Column(name, optional=True) for name in PROFILE)),
    header=f"userid,{','.join(PROFILE)} ",  # with a space at the end
)
BEHAVIOR_LOG = Format(
    "behavior_log.csv",
    (
        Column("user"),
        _time_stamp(),
        Column("btag", "|".join(TAGS), f"must be one of {list(TAGS)}", pl.Enum(TAGS)),
        Column("cate"),
        Column("brand"),
    ),
)
