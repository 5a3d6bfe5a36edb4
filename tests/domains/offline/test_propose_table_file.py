"""Tables as laboratories and spreadsheets write them, and what their columns are taken for."""

import math
import os

import pytest

from sciopt.domains.offline.proposal import TableError, read_table
from sciopt.domains.offline.proposal.cells import as_number
from sciopt.domains.offline.proposal.roles import observations
from sciopt.domains.offline.proposal.table_file import write_table


def table(tmp_path, text, name="t.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("seq,score\nACGT,1\nACGA,2\n", "utf-8"),
        ("seq;score\r\nACGT;1\r\nACGA;2\r\n", "utf-8-sig"),
        ("sep=;\r\nseq;score\r\nACGT;1\r\nACGA;2\r\n", "utf-8"),
        ("seq\tscore\nACGT\t1\nACGA\t2\n", "utf-16"),
        ("seq|score|\nACGT|1|\nACGA|2|\n", "utf-8"),
        ("# made by a robot\n\nseq,score\n\nACGT,1\n,\nACGA, 2\n", "utf-8"),
        ('"seq","score"\n"ACGT","1"\n"ACGA","2"', "utf-8"),
        ("seq,score\rACGT,1\rACGA,2\r", "utf-8"),
    ],
)
def test_the_same_table_however_it_is_written(tmp_path, text, encoding):
    got = read_table(table(tmp_path, text, encoding=encoding))
    assert got.cells == {"seq": ["ACGT", "ACGA"], "score": ["1", "2"]} and len(got) == 2


def test_lines_are_those_of_the_file_even_after_cells_of_several_lines(tmp_path):
    path = table(tmp_path, '# c\nseq,note,score\nACGT,"two\nlines, one cell",1\n\nACGA,,2\n')
    got = read_table(path)
    assert (
        got.lines == [3, 6] and got.place(1) == f"{path}, line 6" and got.cells["note"] == ["two\nlines, one cell", ""]
    )


def test_a_delimiter_inside_a_decimal_number_is_no_delimiter(tmp_path):
    got = read_table(table(tmp_path, "a;b;score\n1,5;2,5;0,1\n1,25;2;3\n"))
    assert got.delimiter == ";" and got.cells["a"] == ["1,5", "1,25"]


def test_other_bytes_are_read_with_a_note(tmp_path):
    got = read_table(table(tmp_path, "Lösung,score\n1,2\n", encoding="cp1252"))
    assert "Lösung" in got.cells and "Windows-1252" in got.notes[0]


def test_short_rows_are_filled_and_a_column_of_nothing_is_dropped(tmp_path):
    got = read_table(table(tmp_path, "seq,score,,\nACGT\nACGA,2,,\n"))
    assert got.cells == {"seq": ["ACGT", "ACGA"], "score": ["", "2"]}
    assert list(read_table(table(tmp_path, ",seq\n0,A\n")).cells) == ["column 1", "seq"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got an empty file"),
        ("seq,score,seq\nA,1,C\n", "line 1: expected each column name once, got `seq` in columns 1 and 3"),
        ("seq,score\nACGT,1\nACGA,2,5\n", "line 3: expected 2 cells"),
        ('seq,score\nACGT,1\n"ACGA,2\nACGC,3\n', "line 3: .*quotation mark"),
        (b"PK\x03\x04 and so on", "got a spreadsheet. Save it as CSV"),
        (b"\x1f\x8b and so on", "got a compressed file"),
        (b"seq,score\nACGT,1\nAC\0GT,2\n", "line 3: expected text, got binary data"),
        (b"seq,score\nACGT,1\n" + bytes(20), "line 3: expected text, got binary data"),
        ("seq,score\nACGT,1\n".encode("utf-16-le"), "line 1: expected text, got binary data"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_line(tmp_path, text, message):
    with pytest.raises(TableError, match=message):
        read_table(table(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("#seq,score\nACGT,1\n", ["seq", "score"]),
        ("# made in May\n# seq;score\nACGT;1,5\n", ["seq", "score"]),
        ("# made by me, in May\nseq,score\nACGT,1\n", ["seq", "score"]),
        ("# made by me, 2024\nACGT,1\nACGA,2\n", ["ACGT", "1"]),
    ],
)
def test_names_behind_a_comment_sign(tmp_path, text, names):
    assert list(read_table(table(tmp_path, text)).cells) == names


def test_a_pipe_cannot_be_read_twice(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TableError, match="got a pipe or a device, which cannot be read twice. Save the table first"):
        read_table(tmp_path / "pipe")


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "no.csv", tmp_path):
        with pytest.raises(TableError, match="expected a table, got none"):
            read_table(path)


def test_a_written_table_is_read_again_and_leaves_nothing_beside_it(tmp_path):
    rows = [["a,b", '"q"', ""], ["c\nd", "é", "1"]]
    path = write_table(tmp_path / "t.csv", ["x", "y y", "z"], rows, delimiter=";", marked=True)
    got = read_table(path)
    assert [list(row) for row in zip(*got.cells.values(), strict=True)] == rows and got.marked and got.delimiter == ";"
    with pytest.raises(RuntimeError):
        write_table(path, ["x"], _breaking_off())
    assert read_table(path).cells == got.cells and list(tmp_path.iterdir()) == [path]


def _breaking_off():
    yield ["1"]
    raise RuntimeError


def found(tmp_path, text, **options):
    got = observations([read_table(table(tmp_path, text))], score=options.pop("score", "y"), **options)
    return got, {role.name: str(role).removeprefix(f"{role.name}: ") for role in got.roles}


def test_labels_dates_and_row_numbers_are_left_out_with_the_reason(tmp_path):
    text = "id,date,when,no.,plate,seq,temp,blank,same,remark text,y\n"
    for k in range(9):
        text += f"{k},3.4.24,2024-05-0{k + 1},{k + 1},P{k},ACG{'ACGT'[k % 4]}A{'CGT'[k % 3]},{20.5 + k % 5},,37,a b {k},{k}\n"
    got, roles = found(tmp_path, text)
    assert got.names == ["seq", "temp"]
    assert roles["id"] == roles["date"] == roles["plate"] == "left out, labels by its name"
    assert roles["when"] == "left out, its cells are dates" and roles["same"] == "left out, it is 37 in every row"
    assert roles["blank"] == "left out, its cells are empty" and roles["no."] == "left out, labels by its name"
    assert roles["remark text"] == "left out, its cells are free text" and roles["y"] == "score"
    assert found(tmp_path, text, designs=["same", "when"])[0].names == ["same", "when"], "who names columns gets them"


def test_a_doubtful_column_is_kept_where_there_is_no_other(tmp_path):
    assert found(tmp_path, "dose,y\n1,0\n2,0.5\n3,1\n")[0].names == ["dose"]
    with pytest.raises(TableError, match="expected design columns beside `y`, got none .id: labels by its name"):
        found(tmp_path, "id,y\n1,0\n2,0.5\n3,1\n")


def test_scores_that_are_missing_wait(tmp_path):
    got, _ = found(tmp_path, "x,y\n1,0.5\n2,\n3,NaN\n5,n/a\n4,pending\n9,1e-3\n")
    assert got.pending == 4 and [k for k, v in enumerate(got.scores) if not math.isnan(v)] == [0, 5]
    assert got.scores[5] == 1e-3 and got.designs[1] == {"x": 2}


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("inf", "line 3: expected a finite number in `y`, got 'inf'"),
        ("0,5", "line 3: .*Write 0.5, or pass --decimal-comma"),
        ("<0.1", "line 3: .*Censored values are not modelled"),
        ("high", "line 3: .*got 'high'"),
        ("1_000", "line 3: .*got '1_000'"),
        ("1,234", "line 3: .*Write 1234, without separators of thousands, or pass --decimal-comma"),
        ("1,234.5", "line 3: .*Write 1234.5, without separators of thousands"),
    ],
)
def test_scores_that_are_no_numbers(tmp_path, cell, message):
    with pytest.raises(TableError, match=message):
        found(tmp_path, f'x,y\n1,0.5\n2,"{cell}"\n')


def test_values_of_design_columns(tmp_path):
    text = "code,level,dose,y\n" + "".join(f"{k:04b},{'AB'[k % 2]},{k / 4},{k}\n" for k in range(9))
    got, _ = found(tmp_path, text)
    assert got.designs[5] == {"code": "0101", "level": "B", "dose": 1.25}, "leading zeros make words, not numbers"
    with pytest.raises(TableError, match=r"line 4: expected a number in `dose`, got 'much'.*--column dose=category"):
        found(tmp_path, "dose,y\n1,1\n2,2\nmuch,3\n4,4\n")
    with pytest.raises(TableError, match="line 3: expected a value of `dose`, got an empty cell"):
        found(tmp_path, "dose,y\n1,1\n,2\n4,4\n")
    comma, _ = found(tmp_path, "dose;y\n1,5;0,5\n2.5;1\n", decimal_comma=True)
    assert comma.designs == [{"dose": 1.5}, {"dose": 2.5}] and comma.scores == [0.5, 1.0]


def test_points_between_thousands_are_no_decimal_points(tmp_path):
    for text in ("dose;y\n1.234;0,5\n2;1\n", "dose;y\n1;1.234,5\n2;1\n"):
        with pytest.raises(TableError, match="line 2: .*Write 1234.*or with a comma if the point is meant as one"):
            found(tmp_path, text, decimal_comma=True)


def test_sequences_with_signs_and_dates_are_left_out_with_the_reason(tmp_path):
    words = ["".join("ACGT"[(k >> 2 * j) & 3] for j in range(8)) for k in range(12)]
    text = "seq,start,x,y\n" + "".join(f"{w}*,{k + 1} May 2024,{k / 4},{k}\n" for k, w in enumerate(words))
    _, roles = found(tmp_path, text)
    assert roles["seq"] == "left out, sequences with '*'; --column seq=sequence takes these for letters"
    assert roles["start"] == "left out, its cells are dates"
    got, _ = found(tmp_path, text, words=["seq"])
    assert got.names == ["seq", "x"]


def test_names_that_are_not_there(tmp_path):
    with pytest.raises(TableError, match="got one column `x y`. Separate the cells by commas"):
        found(tmp_path, "x y\n1 2\n")
    with pytest.raises(TableError, match="expected a column `yeild`, got none of that name. Did you mean `yield`?"):
        found(tmp_path, "x,yield\n1,2\n", score="yeild")
    with pytest.raises(TableError, match="look like data. Add a line of names"):
        found(tmp_path, "ACGT,0.5\nACGA,0.25\n")
    with pytest.raises(TableError, match="expected different ones"):
        found(tmp_path, "x,y\n1,2\n", designs=["x", "y"])
    with pytest.raises(TableError, match="expected rows below the column names"):
        found(tmp_path, "x,y\n")


def test_several_tables_share_their_columns(tmp_path):
    first = read_table(table(tmp_path, "who,x,y\nme,1.5,2\nyou,2,1\n", "a.csv"))
    second = read_table(
        table(tmp_path, "rank,x,y,predicted,uncertainty,novelty\n1,3.5,,2,1,0\n2,4.5,7,2,1,0\n", "b.csv")
    )
    got = observations([first, second], score="y")
    assert got.names == ["x"] and got.scores[:2] == [2, 1] and got.scores[3] == 7 and got.pending == 1
    assert "b.csv has no such column" in str(got.roles[0]) and got.places[3].endswith("b.csv, line 3")


def test_numbers_in_cells():
    assert as_number("\u22122.5", False) == -2.5 and as_number("\u22122", False) == -2, "the minus of spreadsheets"
    assert as_number("12", False) == 12 and isinstance(as_number("12", False), int)
    assert as_number("-1.5e3", False) == -1500 and as_number("1,5", True) == 1.5
    assert (
        as_number("1,5", False) is as_number("nan", False) is as_number("A", False) is as_number("1_0", False) is None
    )
