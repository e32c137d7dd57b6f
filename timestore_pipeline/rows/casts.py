"""Casts to a dataset's types that lose nothing: what would be rounded, cut or wrapped is refused, with the value.

DuckDB's own casts round decimals and whole numbers, drop the time of a day and the offset of a time without a word.
Two things are as the types are: fractions in text become the nearest FLOAT or DOUBLE, and nanoseconds are cut to
microseconds, as Delta has no finer ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from timestore_pipeline.datasets import TimeSpec, TimeUnit
from timestore_pipeline.duck.sql import literal, quote
from timestore_pipeline.model.columns import Column, Kind, decimal_digits, kind_of, whole_numbers_below

# What text has in it that a whole number would lose.
_FRACTION = r"\.[0-9_]*[1-9]|[eE]-"

_MICROS_PER_UNIT = {TimeUnit.SECONDS: "* 1000000", TimeUnit.MILLISECONDS: "* 1000", TimeUnit.MICROSECONDS: ""}


class LossyCast(Exception):
    """No value of the one type can be kept in the other; the message names the column and what to do."""


def type_in_text(type_: str) -> str:
    """Return the DuckDB type as which a text file's column is parsed, where it is kept as ``type_``.

    Where the parser would lose something the text itself is wanted; a time is wanted with its offset.
    """
    if type_.startswith("TIMESTAMP"):
        return "TIMESTAMP WITH TIME ZONE"
    return type_ if kind_of(type_) is Kind.BYTES else "VARCHAR"


def cast_sql(column: Column, source_type: str) -> str:
    """Return SQL that casts a source's column of that name and DuckDB type to ``column``'s type.

    Where a value would lose something it raises an error that names the column and the value.

    Raises:
        LossyCast: whatever the values are, the cast would lose something.
    """
    source = source_type.upper()
    name = quote(column.name)
    if source == column.type:
        return name
    if column.type == "DATE" and source.startswith("TIMESTAMP"):
        raise _lossy(column, source_type)
    kept, brought = kind_of(column.type), kind_of(source)
    if kept is Kind.WHOLE and brought in (Kind.FLOATING, Kind.DECIMAL):
        raise _lossy(column, source_type)
    if source == "VARCHAR":
        return _from_text(column, name)
    if kept is Kind.DECIMAL and brought is Kind.FLOATING:
        # Its shortest text, because no fraction of ten has an end in binary.
        return _text_to_decimal(column, f"CAST({name} AS VARCHAR)")
    if kept is Kind.FLOATING and brought is Kind.DECIMAL:
        back = f"TRY_CAST(CAST(CAST({name} AS {column.type}) AS VARCHAR) AS {source_type})"
        return _if_the_same(column, name, back)
    may_round = kept is Kind.FLOATING and not 0 < whole_numbers_below(source) <= whole_numbers_below(column.type)
    if may_round or kept is Kind.TRUTH or (kept is Kind.DECIMAL and brought is Kind.DECIMAL):
        return _if_the_same(column, name, f"TRY_CAST(CAST({name} AS {column.type}) AS {source_type})")
    if column.type.startswith("TIMESTAMP") and source == "TIMESTAMP_NS":
        cut = f"make_timestamp({_micros_of_nanos(f'epoch_ns({name})')})"
        return f"CASE WHEN isfinite({name}) THEN CAST({cut} AS {column.type}) ELSE CAST({name} AS {column.type}) END"
    return f"CAST({name} AS {column.type})"


def plain_cast_sql(column: Column) -> str:
    """Return SQL that casts text to ``column``'s type as :func:`cast_sql` does where :func:`plain_condition` holds.

    It is short, because to plan what looks at every kind of value takes longer than to cast a thousand values.
    """
    is_short = kind_of(column.type) in (Kind.WHOLE, Kind.DECIMAL, Kind.FLOATING, Kind.TRUTH)
    return f"CAST({quote(column.name)} AS {column.type})" if is_short else cast_sql(column, "VARCHAR")


def plain_condition(columns: Iterable[Column]) -> str:
    """Return the condition under which :func:`plain_cast_sql` casts a row's texts as :func:`cast_sql` does.

    It is not false where they are null. What the one raises an error of, the other does, or this is false.
    """
    by_pattern: dict[str, list[str]] = defaultdict(list)
    by_limit: dict[int, list[str]] = defaultdict(list)
    for column in columns:
        kept = kind_of(column.type)
        if kept is Kind.WHOLE:
            by_pattern[_FRACTION].append(quote(column.name))
        elif kept is Kind.DECIMAL:
            by_pattern[f"[eE]|{_too_fine(column)}"].append(quote(column.name))
        elif kept is Kind.FLOATING:
            by_limit[whole_numbers_below(column.type)].append(f"abs({plain_cast_sql(column)})")
    # One condition for all columns that are alike: what planning takes grows with the square of their number.
    matches = [f"NOT regexp_matches(concat_ws(' ', {', '.join(of)}), '{like}')" for like, of in by_pattern.items()]
    return " AND ".join([*matches, *(f"greatest({', '.join(of)}) < {limit}" for limit, of in by_limit.items())])


def time_sql(column: Column, time: TimeSpec, source_type: str) -> str:
    """Return SQL that casts a source's time column to ``column``'s type, by the dataset's ``time.format`` or ``unit``.

    Raises:
        LossyCast: it is a number and the dataset does not say of what, or as :func:`cast_sql`.
    """
    name = quote(column.name)
    source = source_type.upper()
    if time.format and source == "VARCHAR":
        instant = f"strptime({name}, {literal(time.format)})"
        return _day(column, instant) if column.type == "DATE" else f"CAST({instant} AS {column.type})"
    if kind_of(source) is Kind.WHOLE or (source == "VARCHAR" and time.unit):
        if time.unit is None:
            raise LossyCast(f"the time column {column.name!r} arrives as an integer; set time.unit: s, ms, us or ns")
        number = (
            _text_to_integer(Column(column.name, "BIGINT"), name) if source == "VARCHAR" else f"CAST({name} AS BIGINT)"
        )
        micros = (
            _micros_of_nanos(number) if time.unit is TimeUnit.NANOSECONDS else f"{number} {_MICROS_PER_UNIT[time.unit]}"
        )
        return f"CAST(make_timestamp({micros}) AS {column.type})"
    return cast_sql(column, source_type)


def _lossy(column: Column, source_type: str) -> LossyCast:
    return LossyCast(
        f"column {column.name!r} arrives as {source_type} and is kept as {column.type}, which would lose digits; "
        "send it in the declared type"
    )


def _from_text(column: Column, name: str) -> str:
    kept = kind_of(column.type)
    if kept is Kind.WHOLE:
        return _text_to_integer(column, name)
    if kept is Kind.DECIMAL:
        return _text_to_decimal(column, name)
    if kept is Kind.FLOATING:
        return _text_to_float(column, name)
    in_utc = f"CAST({name} AS TIMESTAMP WITH TIME ZONE)"
    if column.type == "TIMESTAMP":
        return f"CAST({in_utc} AS TIMESTAMP)"
    if column.type == "DATE":
        return _day(column, in_utc)
    if kept is Kind.TRUTH:
        return f"CASE WHEN {name} IS NOT NULL THEN coalesce(TRY_CAST({name} AS BOOLEAN), {_refusal(column, name)}) END"
    return f"CAST({name} AS {column.type})"


def _day(column: Column, instant: str) -> str:
    """Return SQL for the day (of UTC) that begins at an instant; others begin none."""
    moment = f"CAST({instant} AS TIMESTAMP)"
    return (
        f"CASE WHEN date_trunc('day', {moment}) IS NOT DISTINCT FROM {moment} THEN CAST({moment} AS DATE) "
        f"ELSE {_refusal(column, quote(column.name))} END"
    )


def _text_to_integer(column: Column, text: str) -> str:
    return (
        f"CASE WHEN {text} IS NULL THEN NULL WHEN regexp_matches({text}, '{_FRACTION}') "
        f"THEN {_refusal(column, text)} "
        f"ELSE coalesce(TRY_CAST({text} AS {column.type}), {_refusal(column, text)}) END"
    )


def _text_to_decimal(column: Column, text: str) -> str:
    """Return SQL that counts the digits after the point: those that the column has no place for must be zeros."""
    scale = _scale(column)
    places = f"length(regexp_extract({text}, '\\.([0-9_]*?)[0_]*[eE]', 1))"
    exponent = f"TRY_CAST(regexp_extract({text}, '[eE]([+-]?[0-9]+)', 1) AS INTEGER)"
    lossy = (
        f"CASE WHEN regexp_matches({text}, '[eE]') THEN coalesce({places} - {exponent} > {scale}, true) "
        f"ELSE regexp_matches({text}, '{_too_fine(column)}') END"
    )
    return (
        f"CASE WHEN {text} IS NULL THEN NULL WHEN {lossy} THEN {_refusal(column, text)} "
        f"ELSE coalesce(TRY_CAST({text} AS {column.type}), {_refusal(column, text)}) END"
    )


def _scale(column: Column) -> int:
    return (decimal_digits(column.type) or (0, 0))[1]


def _too_fine(column: Column) -> str:
    """Return the pattern of digits for which a decimal without an exponent has no place."""
    return rf"\.[0-9_]{{{_scale(column)}}}[0-9_]*[1-9]"


def _text_to_float(column: Column, text: str) -> str:
    """Return SQL that looks closer only at what is too large for a float to have every whole number."""
    value = f"TRY_CAST({text} AS {column.type})"
    is_whole = f"regexp_full_match({text}, '\\s*[+-]?[0-9_]+(\\.0*)?\\s*')"
    is_number = f"regexp_matches({text}, '[0-9]')"
    same = f"coalesce(TRY_CAST({value} AS HUGEINT) = TRY_CAST({text} AS HUGEINT), false)"
    return (
        f"CASE WHEN abs({value}) < {whole_numbers_below(column.type)} THEN {value} WHEN {text} IS NULL THEN NULL "
        f"WHEN {value} IS NULL OR (isinf({value}) AND {is_number}) OR ({is_whole} AND NOT {same}) "
        f"THEN {_refusal(column, text)} ELSE {value} END"
    )


def _if_the_same(column: Column, name: str, back: str) -> str:
    return (
        f"CASE WHEN {back} IS NOT DISTINCT FROM {name} THEN CAST({name} AS {column.type}) "
        f"ELSE {_refusal(column, name)} END"
    )


def _micros_of_nanos(nanos: str) -> str:
    """Return SQL for the microseconds that have begun; DuckDB's own division rounds times before 1970 up."""
    return f"(({nanos}) - ((({nanos}) % 1000) + 1000) % 1000) // 1000"


def _refusal(column: Column, value: str) -> str:
    says = literal(f"column {column.name!r} is kept as {column.type}, and cannot hold ")
    return f"error({says} || coalesce(CAST({value} AS VARCHAR), 'null'))"
