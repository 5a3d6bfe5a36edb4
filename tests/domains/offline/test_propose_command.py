"""``sciopt propose`` on files: a batch and a report, every bad input said before work, and rounds that continue."""

import csv
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from sciopt.cli import main
from sciopt.domains.offline.proposal import read_table

FIT = ["--score", "y", "-n", "3", "-o", "batch.csv"]


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def call(*args, code=0):
    result = CliRunner().invoke(main, ["propose", *map(str, args)])
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    return result.output


def put(text, name="t.csv"):
    Path(name).write_text(text, encoding="utf-8")
    return name


def rows(name):
    cells = read_table(name).cells
    return [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]


def hill(x):
    return -((x - 0.63) ** 2)


def line(count=9):
    return "id,x,y\n" + "".join(f"s{k},{k / 8},{hill(k / 8):.6f}\n" for k in range(count))


WORDS = [
    "AACGTA",
    "ACCGTT",
    "AAGGTA",
    "TTCGTA",
    "GACGAA",
    "AACCCC",
    "TGCATG",
    "ATATAT",
    "GGGTTA",
    "CATTAC",
    "AAATTT",
    "CCGTAA",
]


def words(score=lambda word: word.count("A")):
    return "seq,y\n" + "".join(f"{word},{score(word)}\n" for word in WORDS)


def test_a_batch_and_its_report():
    out = call(put(line()), *FIT)
    assert re.search(
        r"t.csv: 9 rows\n  x: numbers from 0 to 1 .*\n  id: left out, labels by its name\n  y: the score, the la", out
    )
    batch = rows("batch.csv")
    assert list(batch[0]) == ["rank", "x", "y", "predicted", "uncertainty", "novelty"] and len(batch) == 3
    assert [row["rank"] for row in batch] == ["1", "2", "3"] and {row["y"] for row in batch} == {""}
    assert all(0.5 < float(row["x"]) < 0.75 for row in batch), "near the top of the hill"
    assert all(float(row["uncertainty"]) > 0 and 0 <= float(row["novelty"]) <= 1 for row in batch)
    page = Path("batch.html").read_text()
    for text in (
        "How far to trust the predictions",
        "id: left out, labels by its name",
        "leave-one-out",
        'class="sortable"',
    ):
        assert text in page
    assert page.count("data:image/png;base64") == 3 and not re.search(r"(src|href)=.http", page), "one file, no network"
    assert (
        "to continue, write results into `y` of batch.csv, then:\n  sciopt propose t.csv batch.csv --score y -n 3"
        in out
    )


def test_rounds_continue_and_come_nearer():
    put("x,y\n0,-0.4\n0.3,-0.11\n1,-0.14\n")
    command = ["t.csv", "--score", "y", "-n", "2", "-o", "batch.csv"]
    seen = {"0", "0.3", "1"}
    for number in (1, 2, 3):
        out = call(*command)
        name = command[command.index("-o") + 1]
        batch = rows(name)
        new = {row["x"] for row in batch}
        assert len(new) == 2 and not new & seen, "nothing is proposed twice"
        seen |= new
        for row in batch[: 2 if number > 1 else 1]:  # one result of the first round never comes
            row["y"] = f"{hill(float(row['x'])):.6f}"
        with open(name, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(batch[0]))
            writer.writeheader()
            writer.writerows(batch)
        command = shlex.split(out.strip().splitlines()[-1])[2:]
        assert command[number] == name and command[command.index("-o") + 1] == f"batch{number + 1}.csv"
    out = call(*command, "--dry-run")
    assert "batch3.csv: 2 rows" in out and "1 row without one: pending, not proposed again" in out
    assert min(abs(float(x) - 0.63) for x in seen) < 0.05


def test_the_smallest_is_the_best():
    text = line().replace("-0.", "0.")
    call(put(text), *FIT, "--minimize")
    assert all(0.5 < float(row["x"]) < 0.75 for row in rows("batch.csv"))
    assert "for the smallest" in Path("batch.html").read_text()


def test_sequences_with_a_pool_a_constraint_and_both_strands():
    put(
        "name,seq\n"
        + "".join(f"p{k},{word}\n" for k, word in enumerate(["AAAAAA", "TTTTTT", "AAAAAC", "CCCCCC", *WORDS])),
        "pool.csv",
    )
    out = call(put(words()), *FIT, "--pool", "pool.csv", "--constraint", "'CC' not in seq", "--double-strand")
    assert (
        "pool: pool.csv, 16 rows; nothing else is proposed" in out
        and "are left that are neither measured nor pending" in out
    )
    got = [row["seq"] for row in rows("batch.csv")]
    assert len(got) == 2 and "AAAAAC" in got and len({"AAAAAA", "TTTTTT"} & set(got)) == 1, "one of two strands"
    page = Path("batch.html").read_text()
    assert "neither measured nor pending" in page and "pool.csv, 16 rows" in page


def test_nothing_to_learn_is_a_documented_choice():
    for text in (words(lambda word: 1), "seq,y\nACGTAC,1\n"):
        out = call(put(text), *FIT, "--overwrite")
        assert "nothing can be learned" in out and len(rows("batch.csv")) == 3
        page = Path("batch.html").read_text()
        assert "nothing can be learned" in page and "How far to trust" not in page


def test_replicates_that_contradict_each_other():
    out = call(put(words() + words(lambda word: word.count("A") + 1).partition("\n")[2]), *FIT)
    assert "seq: sequences of 6 letters of ACGT" in out and "averaged" in out
    assert "averaged" in Path("batch.html").read_text()


def test_declared_columns_and_bounds():
    text = "code,dose,y\n" + "".join(f"{k % 3 + 1},{10.0 ** (k % 4 - 2)},{k % 4}\n" for k in range(12))
    out = call(
        put(text), *FIT, "--column", "code=category", "--column", "dose=log", "--bounds", "dose=0.001:1000", "--dry-run"
    )
    assert "code: one of '1', '2', '3' (declared)" in out
    assert "dose: numbers from 0.001 to 1000, on a logarithmic scale (declared)" in out
    assert not Path("batch.csv").exists()


def test_the_form_of_the_table_is_kept():
    text = "Menge;Art;y\r\n" + "".join(f"{k},5;{'ABC'[k % 3]};{k % 5},25\r\n" for k in range(12))
    Path("t.csv").write_bytes(text.encode("utf-8-sig"))
    call("t.csv", *FIT, "--decimal-comma")
    written = Path("batch.csv").read_bytes()
    assert written.startswith(b"\xef\xbb\xbfrank;Menge;Art;y;predicted")
    assert re.search(rb"^1;\d+(,\d+)?;[ABC];;\d+(,\d+)?;", written.splitlines()[1]) and b"." not in written
    assert "3 rows without one" in call("t.csv", "batch.csv", *FIT, "--decimal-comma", "--dry-run")
    call("t.csv", "--score", "y", "-n", "3", "-o", "next.tsv", "--decimal-comma", "--seed", "1")
    assert b"\t" in Path("next.tsv").read_bytes()


def test_results_in_a_batch_are_never_overwritten():
    put(line())
    call("t.csv", *FIT)
    assert "which exists" in call("t.csv", *FIT, code=2)
    call("t.csv", *FIT, "--overwrite")
    filled = Path("batch.csv").read_text().replace(",,", ",0.1,", 1)
    put(filled, "batch.csv")
    assert "expected a batch without results" in call("t.csv", *FIT, "--overwrite", code=2)
    assert "expected another file than the tables" in call("t.csv", "batch.csv", *FIT, "--overwrite", code=2)
    put("not,a,batch\n1,2,3\n", "batch.csv")
    assert "no empty column `y`" in call("t.csv", *FIT, "--overwrite", code=2)
    assert Path("batch.csv").read_text() == "not,a,batch\n1,2,3\n"


def test_what_appears_during_the_fit_is_not_overwritten(monkeypatch):
    from sciopt.domains.offline.proposal import request

    def slow(*args, **options):
        put("someone,else\n1,2\n", "batch.csv")
        return fit(*args, **options)

    fit = request.propose
    monkeypatch.setattr(request, "propose", slow)
    assert "--out: expected a new file, got batch.csv, which exists" in call(put(line()), *FIT, code=2)
    assert Path("batch.csv").read_text() == "someone,else\n1,2\n" and not Path("batch.html").exists()


def test_an_interrupt_between_the_files_says_which_is_there(monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("sciopt.domains.offline.proposal.commands.write_page", interrupted)
    assert "stopped by ^C; batch.csv was written" in call(put(line()), *FIT, code=130)
    assert len(rows("batch.csv")) == 3 and not Path("batch.html").exists()


def test_a_pool_extends_what_is_shown_and_its_rows_are_named():
    table, pool = put("x,base,y\n" + "".join(f"{2 * k},{'KN'[k % 2]},{k % 4}\n" for k in range(9))), "p.csv"
    put("who,base,x\na,K,20\nb,Li,3\n", pool)
    out = call(table, *FIT, "--pool", pool, "--dry-run")
    assert "x: whole numbers from 0 to 20" in out and "base: one of 'K', 'Li', 'N'" in out
    put(words())
    put("seq\nAAAAAA\nAAAXAA\n", pool)
    assert "got 'X' in 'AAAXAA' in p.csv, line 3" in call(table, *FIT, "--pool", pool, code=2)
    put("seq\n", pool)
    assert "p.csv: expected designs that may be proposed, got none" in call(table, *FIT, "--pool", pool, code=2)


def test_a_declared_column_is_a_design_column():
    put("seq,y\n" + "".join(f"{'ACGT' * k + 'A'},{k}\n" for k in range(12)))
    told = "sequences of 1 to 45 letters, too different to be padded unasked; --column seq=sequence pads them"
    assert told in call("t.csv", *FIT, "--dry-run", code=2)
    assert "sequences of 1 to 45 letters" in call("t.csv", *FIT, "--dry-run", "--column", "seq=sequence")
    put("count,y\n" + "".join(f"{k},{k}\n" for k in range(12)))
    assert "count: whole numbers from 0 to 20" in call("t.csv", *FIT, "--dry-run", "--bounds", "count=0:20")


def test_both_strands_of_rna_and_of_small_letters():
    for text in (words().replace("T", "U"), words().lower()):
        put(text)
        call("t.csv", *FIT, "--double-strand", "--dry-run")
    call("t.csv", *FIT, "--double-strand")
    assert len(rows("batch.csv")) == 3


def test_an_interrupt_writes_nothing(monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("sciopt.domains.offline.proposal.request.propose", interrupted)
    assert "stopped by ^C; nothing was written" in call(put(line()), *FIT, code=130)
    assert [path.name for path in Path().iterdir()] == ["t.csv"]


BAD = {
    "expected the column of the scores, got none. Columns: id, x, y": (line(), ["t.csv", "-o", "b.csv"]),
    "expected a column `z`, got none": (line(), ["t.csv", "--score", "z", "-o", "b.csv"]),
    "expected a column `X`, got none of that name. Did you mean `x`": (line(), ["t.csv", "--design", "X", *FIT]),
    "--out: expected a file name ending in .csv or .tsv, got none": (line(), ["t.csv", "--score", "y"]),
    "--out: expected a file name in a folder that exists": (line(), ["t.csv", "--score", "y", "-o", "no/b.csv"]),
    "expected each table once, got it twice": (line(), ["t.csv", "./t.csv", *FIT]),
    "no.csv: expected a table, got none": (line(), ["t.csv", *FIT, "--pool", "no.csv"]),
    "t.csv: expected a column `z`": (line(), ["t.csv", "--design", "z", *FIT]),
    "--column: expected `name=kind` with a kind out of sequence": (line(), ["t.csv", *FIT, "--column", "x=real"]),
    "--column: expected a design column, got `z`": (line(), ["t.csv", *FIT, "--column", "z=log"]),
    "--column: expected numbers > 0 in `x`, got 0": (line(), ["t.csv", *FIT, "--column", "x=log"]),
    "--column: expected whole numbers in `x`": (line(), ["t.csv", *FIT, "--column", "x=integer"]),
    "--bounds: expected `name=low:high` with two finite numbers in order": (
        line(),
        ["t.csv", *FIT, "--bounds", "x=3:1"],
    ),
    "--bounds: expected a column of numbers, got `x`, a category": (
        line(),
        ["t.csv", *FIT, "--bounds", "x=1:3", "--column", "x=category"],
    ),
    "two finite numbers in order, got 'x=-inf:inf'": (line(), ["t.csv", *FIT, "--bounds", "x=-inf:inf"]),
    "two finite numbers in order, got 'x=0:1e400'": (line(), ["t.csv", *FIT, "--bounds", "x=0:1e400"]),
    "two finite numbers in order, got 'x=-1e308:1e308'": (line(), ["t.csv", *FIT, "--bounds", "x=-1e308:1e308"]),
    "--bounds: expected each column once, got `x` twice": (
        line(),
        ["t.csv", *FIT, "--bounds", "x=0:1", "--bounds", "x=0:2"],
    ),
    "--column: expected each column once, got `x` twice": (
        line(),
        ["t.csv", *FIT, "--column", "x=number", "--column", "x=category"],
    ),
    "expected `low` of `x` >= 1e-300 with log=True, got 1e-320": (
        "x,y\n1e-320,1\n1e-310,2\n",
        ["t.csv", *FIT, "--column", "x=log"],
    ),
    "expected `low, high` of `x` at most 1e+300 apart": ("x,y\n-1e308,1\n1e308,2\n", ["t.csv", *FIT]),
    "--report: expected a file name ending in .html, got thesis.docx": (
        line(),
        ["t.csv", *FIT, "--report", "thesis.docx", "--overwrite"],
    ),
    "--weight: expected a finite number >= 0, got nan": (line(), ["t.csv", *FIT, "--weight", "nan"]),
    "--weight: expected a finite number >= 0, got inf": (line(), ["t.csv", *FIT, "--weight", "inf"]),
    "--double-strand: expected one column of DNA or RNA sequences of one length, got no column of sequences": (
        line(),
        ["t.csv", *FIT, "--double-strand"],
    ),
    "--double-strand: expected one column of DNA or RNA": (
        words().replace("G", "W").replace("C", "K"),
        ["t.csv", *FIT, "--double-strand"],
    ),
    "--out: expected a file that can be written": (line(), ["t.csv", "--score", "y", "-o", "b" * 245 + ".csv"]),
    "--weight: expected it with --acquisition ucb, got ei": (
        line(),
        ["t.csv", *FIT, "--acquisition", "ei", "--weight", "1"],
    ),
    "--constraint: expected `text` as an expression such as": (line(), ["t.csv", *FIT, "--constraint", "x <"]),
    "--constraint: expected": (line(), ["t.csv", *FIT, "--constraint", "z < 3"]),
    "t.csv, line 3: expected a finite number in `y`, got 'inf'": ("x,y\n0.1,1\n0.2,inf\n", ["t.csv", *FIT]),
    "expected scores in `y`, got 2 rows without one": ("x,y\n0.1,\n0.2,nan\n", ["t.csv", *FIT]),
    "(DNA), as in 12 of 13 rows, got 'N' in 'ACNTAC' in t.csv, line 14": (words() + "ACNTAC,1\n", ["t.csv", *FIT]),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_said_before_any_work(message):
    text, args = BAD[message]
    put(text)
    out = call(*args, code=2)
    last = out.strip().splitlines()[-1]
    assert last.startswith("sciopt: error: ") and message in last and ": expected " in last, last
    assert [path.name for path in Path().iterdir()] == ["t.csv"]
