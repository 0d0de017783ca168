HEAD

@dataclass(frozen=True)
class Table:
    """A CSV as text. columns: arrow string arrays (n,), none null. rows: int (n,), the row of each in the file.

    ragged: rows with more or fewer cells than the header, whose surplus cells were joined to the last column.
    """

    path: Path
    header: list[str]
    columns: list[Any]
    rows: np.ndarray
    ragged: list[int]

    @property
    def images(self) -> Any:
        return self.columns[0]


def read_table(path: Path, lenient: bool = False) -> Table:
    """A CSV with a header, two columns or more and one row or more; `lenient` lets ragged rows pass, and notes them."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = next(csv.reader(file), None)
        if header is None:
            raise WhaleidError(f"{path}: the file is empty; a header and a row for each image are needed")
        if len(header) < 2:
            raise WhaleidError(f"{path}: one column only ({''.join(header)}); give the image, a comma, then its labels")
        table = _read_fast(path, header) or _read_slowly(path, header)
    except FileNotFoundError as error:
        raise WhaleidError(f"{path}: there is no such file; check the path") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise WhaleidError(f"{path}: cannot be read as a CSV in UTF-8: {error}") from error
    if not len(table.rows):
        raise WhaleidError(f"{path}: a header and no rows; give a row for each image")
    if table.ragged and not lenient:
        raise WhaleidError(
            f"{path}: row {table.ragged[0]} has not {len(header)} cells, as the header has; join labels by spaces"
        )
    return table


def _read_fast(path: Path, header: list[str]) -> Table | None:
    """The table by arrow's threads; None where a row is ragged or blank, or arrow gives up."""
    ragged: list[Any] = []

    def note(row: Any) -> str:
        ragged.append(row)
        return "skip"

    names = [f"f{i}" for i in range(len(header))]  # arrow's own: header names may repeat
    try:
        table = arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(autogenerate_column_names=True),
            parse_options=arrow_csv.ParseOptions(ignore_empty_lines=False, invalid_row_handler=note),
            convert_options=arrow_csv.ConvertOptions(column_types={name: pa.string() for name in names}),
        )
    except pa.ArrowInvalid:
        return None
    columns = [pa.concat_arrays(table[name].slice(1).chunks) for name in names if len(table) > 1]
    if ragged or not columns or pc.any(pc.equal(columns[0], "")).as_py():
        return None
    return Table(path, header, columns, np.arange(2, len(table) + 1), [])


def _read_slowly(path: Path, header: list[str]) -> Table:
    """The table by Python, row by row: exact about rows, ten times as slow."""
    width = len(header)
    cells: list[list[str]] = []
    rows: list[int] = []
    ragged: list[int] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if number == 1 or not row:
                continue
            if len(row) != width:
                ragged.append(number)
                row = [*row[: width - 1], " ".join(row[width - 1 :])]
                row += [""] * (width - len(row))
            cells.append(row)
            rows.append(number)
    columns = [pa.array([row[i] for row in cells], pa.string()) for i in range(width)]
    return Table(path, header, columns, np.array(rows, dtype=np.int64), ragged)


def joined(columns: Sequence[Any]) -> Any:
    return columns[0] if len(columns) == 1 else pc.binary_join_element_wise(*columns, " ")


def encode(table: Table, cells: Any) -> tuple[np.ndarray, Any]:
    """Labels joined by white space -> codes int32 (n, m), PADDING at the end of a row, and the labels they stand for."""
    split = pc.ascii_split_whitespace(cells)
    flat, row = split.flatten(), np.repeat(np.arange(len(cells)), pc.list_value_length(split).to_numpy())
    full = pc.not_equal(flat, "")  # splitting leaves "" for an empty cell and at both ends
    if not pc.all(full).as_py():
        flat, row = flat.filter(full), row[full.to_numpy(zero_copy_only=False)]
    encoded = flat.dictionary_encode()
    count = np.bincount(row, minlength=len(cells))
    width = int(count.max(initial=0))
    if width * len(cells) > _MAX_CELLS:
        raise WhaleidError(f"{table.path}: row {table.rows[count.argmax()]} has {width} guesses; that is too many")
    codes = np.full((len(cells), width), PADDING, dtype=np.int32)
    codes[row, np.arange(len(row)) - (np.cumsum(count) - count)[row]] = encoded.indices.to_numpy()
    return codes, encoded.dictionary


def objects(array: Any) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False)


def blank(cells: Any) -> np.ndarray:
    """bool (n,): nothing in the cell, or white space alone."""
    return pc.equal(pc.ascii_trim_whitespace(cells), "").to_numpy(zero_copy_only=False)


def not_in(values: Any, others: Any) -> np.ndarray:
    return pc.invert(pc.is_in(values, value_set=others)).to_numpy(zero_copy_only=False)


def PLACES(values: Any, others: Any) -> np.ndarray:
    return np.flatnonzero(not_in(values, others))


# ---------------------------------------------------------------------------------------------- what must hold


def require_images(table: Table) -> None:
    empty = blank(table.images)
    if empty.any():
        raise WhaleidError(f"{table.path}: row {table.rows[empty.argmax()]}: the image is empty; fill it in")


def require_distinct(table: Table) -> None:
    encoded = table.images.dictionary_encode()
    if len(encoded.dictionary) == len(table.images):
        return
    places = encoded.indices.to_numpy()
    name = int(np.argmax(np.bincount(places) > 1))
    rows = table.rows[places == name]
    shown = ", ".join(str(row) for row in rows[:_LISTED]) + (", ..." if len(rows) > _LISTED else "")
    surplus = len(table.images) - len(encoded.dictionary)
    raise WhaleidError(
        f"{table.path}: image {encoded.dictionary[name]} is in rows {shown} ({surplus} surplus rows in all); "
        "keep one row for each image"
    )


def require_same_images(answers: Table, truths: Table) -> None:
    missing = truths.images.take(pa.array(PLACES(truths.images, answers.images))).to_pylist()
    extra = answers.images.take(pa.array(PLACES(answers.images, truths.images))).to_pylist()
    if missing or extra:
        raise WhaleidError(f"{answers.path}: {difference(missing, extra, str(truths.path))}")


def difference(missing: list[str], extra: list[str], other: str) -> str:
    """`2 images of <other> have no row (a, b)` and the reverse."""

    def named(images: list[str]) -> str:
        return ", ".join(images[:_NAMED]) + (", ..." if len(images) > _NAMED else "")

    parts = [f"{len(missing)} image(s) of {other} have no row ({named(missing)})"] if missing else []
    parts += [f"{len(extra)} image(s) are not in {other} ({named(extra)})"] if extra else []
    return "; ".join(parts)
