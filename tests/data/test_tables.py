"""Tables: quantities, categories, labels and groups as people write them, right or refused."""

import bz2
import csv
import datetime
import decimal
import functools
import gzip
import io
import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_sim.data import datasets
from fedjax_sim.data.datasets import Dataset, from_table
from fedjax_sim.data.datasets.adult import ADULT_LEVELS
from fedjax_sim.data.datasets.tables import scaler
from same_data import assert_same


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Read text, or bytes, as a table whose test rows are its training rows; nothing is scaled."""

    def function(content: str | bytes, file: str = "mine.csv", **options: Any) -> Dataset:
        path = tmp_path / file
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return from_table(path, path, **{"label_column": "y", "scaling": "none", **options})

    return function


def inputs(data: Dataset) -> list[list[float]]:
    return data.train["x"].tolist()


# ---------------------------------------------------------------- what has worked all along

CSV = """age,city,income,site,label
20,Rome,1.5,a,no
30, Oslo ,-2.5,a,yes
40,Rome,0,b,no
50,?,4,b,maybe
"""
CSV_TEST = "label,site,income,city,age\nyes,c,9.5,Paris,25\n"


def csv_file(folder: Path, text: str = CSV, name: str = "mine.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_from_csv_encodes_by_the_training_rows(tmp_path: Path) -> None:
    data = datasets.from_csv(
        csv_file(tmp_path),
        csv_file(tmp_path, CSV_TEST, "test.csv"),
        label_column="label",
        group_columns=["site", "city"],
        feature_columns=["age", "city", "income"],
    )
    assert data.name == "mine"
    assert data.feature_names == ("age", "city=Oslo", "city=Rome", "income")
    assert data.class_names == ("maybe", "no", "yes")
    expected = [
        [0, 0, 1, 4 / 6.5],
        [1 / 3, 1, 0, 0],
        [2 / 3, 0, 1, 2.5 / 6.5],
        [1, 0, 0, 1],
    ]
    np.testing.assert_allclose(data.train["x"], expected, rtol=1e-6)
    np.testing.assert_allclose(data.test["x"], [[5 / 30, 0, 0, 12 / 6.5]], rtol=1e-6)
    np.testing.assert_array_equal(data.train["y"], [1, 2, 1, 0])
    np.testing.assert_array_equal(data.test["y"], [2])
    assert data.train_groups["site"].tolist() == ["a", "a", "b", "b"]
    assert data.test_groups["city"].tolist() == ["Paris"]


def test_from_csv_options(tmp_path: Path) -> None:
    text = "number;code;constant;label\n1;7;5;10\n2;8;5;9\n6;7;5;9\n"
    path = csv_file(tmp_path, "\ufeff" + text)
    read = functools.partial(datasets.from_csv, path, path, label_column="label", delimiter=";")
    data = read(scaling="standard", categorical_columns=["code"])
    assert data.class_names == ("9", "10")
    assert data.feature_names == ("number", "code=7", "code=8", "constant")
    number = np.array([1, 2, 6])
    np.testing.assert_allclose(data.train["x"][:, 0], (number - 3) / number.std(), rtol=1e-6)
    np.testing.assert_array_equal(data.train["x"][:, 3], 0)
    np.testing.assert_array_equal(read(scaling="none").train["x"][:, 2], 5)


def test_from_csv_holds_out_rows(tmp_path: Path) -> None:
    rows = "".join(f"{i},{i % 3}\n" for i in range(50))
    path = csv_file(tmp_path, "value,label\n" + rows)
    read = functools.partial(datasets.from_csv, path, label_column="label", scaling="none")
    data = read(test_fraction=0.3)
    values = np.concatenate([data.train["x"], data.test["x"]]).ravel()
    assert len(data.test["y"]) == 15
    assert sorted(values) == list(range(50))
    np.testing.assert_array_equal(data.test["y"], data.test["x"][:, 0] % 3)
    assert_same(data, read(test_fraction=0.3))
    assert not np.array_equal(data.test["x"], read(test_fraction=0.3, seed=1).test["x"])
    with pytest.raises(ValueError, match=r"test_fraction=0.001 of 50 rows leaves no rows"):
        read(test_fraction=0.001)
    with pytest.raises(ValueError, match="test_fraction must lie in"):
        read(test_fraction=1.5)


def test_from_csv_reads_adult_as_adult_does(shared_data: Path, tmp_path: Path) -> None:
    header = (
        "age,workclass,fnlwgt,education,education-num,marital-status,occupation,relationship,race,"
        "sex,capital-gain,capital-loss,hours-per-week,native-country,income\n"
    )
    train = (shared_data / "adult.data").read_text()
    test = (shared_data / "adult.test").read_text().split("\n", 1)[1].replace("K.\n", "K\n")
    data = datasets.from_csv(
        csv_file(tmp_path, header + train, "train.csv"),
        csv_file(tmp_path, header + test, "test.csv"),
        label_column="income",
        feature_columns=[*ADULT_LEVELS],
        group_columns=["education"],
    )
    order = [data.feature_names.index(name) for name in datasets.adult().feature_names]
    np.testing.assert_array_equal(data.train["x"][:, order], datasets.adult().train["x"])
    np.testing.assert_array_equal(data.test["x"][:, order], datasets.adult().test["x"])
    np.testing.assert_array_equal(data.train["y"], datasets.adult().train["y"])
    np.testing.assert_array_equal(data.test["y"], datasets.adult().test["y"])


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(-1_000, 1_000), st.sampled_from("uvw"), st.sampled_from("xy")),
        min_size=1,
        max_size=12,
    )
)
def test_from_csv_loses_nothing(tmp_path_factory: Any, rows: list[tuple[int, str, str]]) -> None:
    folder = tmp_path_factory.mktemp("csv")
    text = "number,kind,label\n" + "".join(f"{n},{k},{y}\n" for n, k, y in rows)
    path = csv_file(folder, text)
    data = datasets.from_csv(path, path, label_column="label", scaling="none")
    kinds = [name.removeprefix("kind=") for name in data.feature_names[1:]]
    again = [
        (int(x[0]), kinds[x[1:].argmax()], data.class_names[y])
        for x, y in zip(data.train["x"], data.train["y"], strict=True)
    ]
    assert again == rows


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (CSV, {"label_column": "lable"}, "unknown column of mine.csv 'lable'. .*'label'"),
        (CSV, {"group_columns": ["sit"]}, "'sit'. Did you mean 'site'"),
        (CSV, {"feature_columns": []}, "no feature columns"),
        (CSV, {"scaling": "max"}, "unknown scaling 'max'"),
        (CSV.replace("40", "forty"), {}, "mine.csv, line 4: column 'age' holds numbers.* 'forty'"),
        (
            CSV.replace("40", "nan"),
            {},
            "mine.csv, line 4: column 'age' holds .* 'nan'",
        ),
        (CSV.replace("1.5", ""), {}, "mine.csv, line 2: column 'income' .* is missing.*fill"),
        (CSV.replace("no\n", "\n", 1), {}, "mine.csv, line 2: no label in column 'label'"),
        (CSV.replace("30, Oslo", "30"), {}, "mine.csv, line 3: 4 fields where the header has 5"),
        (CSV.replace("site", "city"), {}, "more than one column named 'city'"),
        ("age,label\n", {}, "needs a line of column names and at least one row"),
        ("a,b,label\n1,?,x\n", {}, "column 'b' holds no values"),
        ("label\nx\ny\n", {}, "no feature columns"),
    ],
)
def test_from_csv_refuses(tmp_path: Path, text: str, options: dict[str, Any], message: str) -> None:
    path = csv_file(tmp_path, text)
    with pytest.raises(ValueError, match=message):
        datasets.from_csv(path, path, **{"label_column": "label", **options})


def test_from_csv_refuses_test_rows_that_do_not_fit(tmp_path: Path) -> None:
    def read(test: str) -> None:
        other = csv_file(tmp_path, test, "test.csv")
        datasets.from_csv(csv_file(tmp_path), other, label_column="label")

    with pytest.raises(ValueError, match=r"test.csv, line 2: the label 'perhaps' does not occur"):
        read(CSV_TEST.replace("yes", "perhaps"))
    with pytest.raises(ValueError, match=r"test.csv, line 2: column 'age' holds numbers, .* 'old'"):
        read(CSV_TEST.replace("25", "old"))
    with pytest.raises(ValueError, match=r"unknown column of test.csv 'age'"):
        read(CSV_TEST.replace("age", "years"))
    with pytest.raises(FileNotFoundError, match=r"test: .*nowhere.csv does not exist"):
        datasets.from_csv(csv_file(tmp_path), tmp_path / "nowhere.csv", label_column="label")


def test_from_csv_refuses_identifiers_unless_told(tmp_path: Path) -> None:
    text = "name,label\n" + "".join(f"person {i},{i % 2}\n" for i in range(1_001))
    path = csv_file(tmp_path, text)
    with pytest.raises(ValueError, match=r"'name' has 1,001 different values.*group_columns"):
        datasets.from_csv(path, path, label_column="label")
    data = datasets.from_csv(path, path, label_column="label", categorical_columns=["name"])
    assert data.train["x"].shape == (1_001, 1_001)


# ---------------------------------------------------------------- quantities


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("x;y\n37,4;a\n-0,5;b\n", {"decimal": ","}, [37.4, -0.5]),
        ('x,y\n"1,037",a\n512,b\n', {"thousands": ","}, [1037, 512]),
        ("x;y\n1.234.567,5;a\n512;b\n", {"thousands": ".", "decimal": ","}, [1234567.5, 512]),
        ("x;y\n1 037;a\n1\u202f038;b\n", {"thousands": " "}, [1037, 1038]),
        ("x;y\n1'037;a\n12;b\n", {"thousands": "'"}, [1037, 12]),
        ("x,y\n5%,a\n 7.5 %,b\n", {}, [0.05, 0.075]),
        ("x;y\n5,5%;a\n7%;b\n", {"decimal": ","}, [0.055, 0.07]),
        ("x,y\n+5,a\n1e3,b\n.5,a\n5.,b\n-0,a\n", {}, [5, 1000, 0.5, 5, 0]),
        ("x,y\n007,a\n010,b\n", {"numeric_columns": ["x"]}, [7, 10]),
        ("x,y\nyes,a\nNo,b\n", {"numeric_columns": ["x"]}, [1, 0]),
    ],
)
def test_numbers_as_people_write_them(
    read: Any, text: str, options: dict[str, Any], expected: list[float]
) -> None:
    data = read(text, **options)
    assert data.feature_names == ("x",)
    np.testing.assert_array_equal(data.train["x"][:, 0], np.float32(expected))


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        # 2024-05-31 is 19,874 days after 1970-01-01, by `date -d 2024-05-31 +%s` / 86,400.
        ("x,y\n2024-05-31,a\n1969-12-31,b\n", {}, [19874, -1]),
        ("x,y\n2024-05-31 12:00,a\n2024-05-31T18:00:00.000000000,b\n", {}, [19874.5, 19874.75]),
        ("x,y\n2024-05-31T12:00Z,a\n2024-05-31T14:00+02:00,b\n", {}, [19874.5, 19874.5]),
        ("x,y\n31.05.2024,a\n01.06.2024,b\n", {"date_format": "%d.%m.%Y"}, [19874, 19875]),
        ("x,y\n5/31/2024,a\n12/31/1969,b\n", {"date_format": "%m/%d/%Y"}, [19874, -1]),
        ("x,y\n20240531,a\n20240601,b\n", {"date_format": "%Y%m%d"}, [19874, 19875]),
        ("x,y\n2024-05-31,a\n2024-06-01,b\n", {"date_format": "%d.%m.%Y"}, [19874, 19875]),
        ("x,y\n31 May 2024,a\n1 Jun 2024,b\n", {"date_format": "%d %b %Y"}, [19874, 19875]),
    ],
)
def test_dates_become_days(
    read: Any, text: str, options: dict[str, Any], expected: list[float]
) -> None:
    data = read(text, **options)
    assert data.feature_names == ("x [days]",)
    np.testing.assert_array_equal(data.train["x"][:, 0], np.float32(expected))


def test_times_become_hours(read: Any) -> None:
    data = read("x,y\n7:30,a\n23:59:59.5,b\n36:00:00,a\n")
    assert data.feature_names == ("x [hours]",)
    expected = [7.5, 24 - 0.5 / 3600, 36]
    np.testing.assert_array_equal(data.train["x"][:, 0], np.float32(expected))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["37,4", "36,9"], "line 2: column 'x' .* looks like numbers, such as '37,4'.*decimal or"),
        (["1,037", "512"], "line 2: column 'x' holds numbers, but here '1,037'.*thousands"),
        (["1", "forty", "3"], "line 3: .* 'forty'.*add it to missing.*categorical_columns"),
        (["5%", "7"], "line 2: column 'x' holds numbers, but here '5%'"),
        (["5 kg", "7.5 kg"], "same text around them, such as '5 kg'"),
        (["$5", "$7"], "same text around them, such as '\\$5'"),
        (["(5)", "(7)"], "same text around them"),
        (["1e999", "1"], "holds numbers, but here '1e999'"),
        (["0x1F", "1"], "holds numbers, but here '0x1F'"),
        (["1_000", "1"], "holds numbers, but here '1_000'"),
        (["\uff11", "1"], "holds numbers, but here '\uff11'"),  # a wide digit, float() takes it
        (["nan", "1"], "holds numbers, but here 'nan'"),
        (["inf", "1"], "holds numbers, but here 'inf'"),
        (
            ["01234", "21234"],
            "zeros in front, such as '01234'.*categorical_columns.*numeric_columns",
        ),
        (
            ["05/06/2024", "07/08/2024"],
            "looks like dates or times, such as '05/06/2024'.*date_",
        ),
        (["31.05.2024", "1.6.2024"], "looks like dates"),
        (["5 June 2024", "7 May 2024"], "looks like dates"),
        (["May 7, 2024", "June 5, 2024"], "looks like dates"),
        (["2024-05", "2024-06"], "looks like dates"),
        (["7:30 pm", "8:15 am"], "looks like dates"),
        (["20240531", "20240601"], "may be dates or numbers.*'%Y%m%d'.*numeric_columns"),
        (["2024-05-31", "2024-02-30"], "line 3: column 'x' holds dates, but here '2024-02-30'"),
        (["Oslo", "Lima", "7"], "line 4: column 'x' holds text, but here '7', .* as numbers are"),
        (["2024-05-31", "soon"], "line 3: column 'x' holds dates, but here 'soon'"),
        (["7:30", "7:75"], "line 3: column 'x' holds times, but here '7:75'"),
    ],
)
def test_what_is_no_quantity_for_sure_is_refused_with_its_place(
    read: Any, values: list[str], message: str
) -> None:
    text = "x,y\n" + "".join(f'"{value}",a\n' for value in values)
    with pytest.raises(ValueError, match=f"mine.csv, .*{message}"):
        read(text)
    assert read(text, categorical_columns=["x"]).feature_names  # the way out that is named


@pytest.mark.parametrize(
    "values",
    [
        ["20-29", "30-39"],
        ["1st", "2nd", "3rd"],
        ["Q1", "Q2"],
        ["<18", "18-30"],
        ["9th", "Bachelors"],
        ["May", "June"],
        ["A1", "B2"],
        ["2+1", "3+1"],
        ["1.2.3", "a"],
    ],
)
def test_categories_with_digits_stay_categories(read: Any, values: list[str]) -> None:
    data = read("x,y\n" + "".join(f"{value},a\n" for value in values))
    assert data.feature_names == tuple(f"x={value}" for value in sorted(values))


def test_a_value_is_read_as_the_training_rows_are(tmp_path: Path) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("x,when,y\n5%,2024-05-31,1\n6%,2024-05-31,2\n")
    for row, message in {
        "5,2024-05-31,1": "test.csv, line 2: column 'x' holds percentages, but here '5'",
        "5%,31.5.2024,1": "column 'when' holds dates, but here '31.5.2024'",
        "5%,2024-05-31,1.5": "the label '1.5' does not occur in the training rows.*'1', '2'",
    }.items():
        test.write_text(f"x,when,y\n{row}\n")
        with pytest.raises(ValueError, match=message):
            from_table(train, test, label_column="y")
    test.write_text("x,when,y\n5.0 %,2024-05-31T00:00,1.0\n")  # the same, written in another way
    data = from_table(train, test, label_column="y")
    np.testing.assert_array_equal(data.test["x"], data.train["x"][:1])
    np.testing.assert_array_equal(data.test["y"], [0])


def test_constant_columns_are_zero_however_they_round() -> None:
    values = np.full((3, 1), 0.1)
    assert 0 < values.std(axis=0)[0] < 1e-16  # by which the difference to the mean was divided
    np.testing.assert_array_equal(scaler(values, "standard")(values), 0)
    tiny = np.array([[0.0], [1e-200]])  # whose squares are 0
    np.testing.assert_array_equal(scaler(tiny, "standard")(tiny), 0)
    np.testing.assert_array_equal(scaler(tiny, "minmax")(tiny), [[0], [1]])


# ---------------------------------------------------------------- what is missing

GAPS = "x,k,y\n1,u,a\n,v,b\n5,?,a\n6,u,b\n"


def test_missing_quantities_are_filled_and_marked(read: Any) -> None:
    with pytest.raises(ValueError, match=r"line 3: column 'x' is numeric.*1 such rows.*fill"):
        read(GAPS)
    data = read(GAPS, fill="mean")
    assert data.feature_names == ("x", "x=?", "k=u", "k=v")
    expected = [[1, 0, 1, 0], [4, 1, 0, 1], [5, 0, 0, 0], [6, 0, 1, 0]]
    np.testing.assert_array_equal(data.train["x"], expected)
    assert inputs(read(GAPS, fill="median"))[1] == [5, 1, 0, 1]
    scaled = read(GAPS, fill="mean", scaling="minmax")  # by the values that are there
    np.testing.assert_allclose(scaled.train["x"][:, 0], [0, 0.6, 0.8, 1], rtol=1e-6)
    data = read(GAPS, fill="drop")
    assert inputs(data) == [[1, 1], [6, 1]] and data.feature_names == ("x", "k=u")
    with pytest.raises(ValueError, match="no row without a missing value"):
        read("x,k,y\n,u,a\n1,,b\n", fill="drop")


def test_missing_labels_and_groups(read: Any) -> None:
    text = "x,h,y\n1,A,a\n2,,b\n3,B,\n"
    with pytest.raises(ValueError, match=r"line 4: no label in column 'y' \(1 such rows\).*drop"):
        read(text, group_columns=["h"])
    text = text.replace("B,", "B,b")
    groups = read(text, group_columns=["h"]).train_groups["h"].tolist()
    assert groups == ["A", "?", "B"]
    assert read(text, group_columns=["h"], fill="drop").train_groups["h"].tolist() == ["A", "B"]


def test_how_a_missing_value_is_written_is_said(read: Any) -> None:
    text = "x,k,y\n1,NA,a\n-,v,b\n"
    data = read(text, missing=["NA", "-"], fill="mean")
    assert inputs(data) == [[1, 0, 0], [1, 1, 1]]
    # Nobody but the user knows whether NA is Namibia.
    assert read("x,k,y\n1,NA,a\n2,v,b\n").feature_names == ("x", "k=NA", "k=v")
    with pytest.raises(TypeError, match=r"missing must be a list such as \['NA'\], got 'NA'"):
        read(text, missing="NA")


# ---------------------------------------------------------------- categories and labels


def test_one_value_in_two_forms_is_one_category(read: Any) -> None:
    data = read(
        "k,g,y\n1,7,1\n1.0,7.0,1.0\n2,8,2\n", categorical_columns=["k"], group_columns=["g"]
    )
    assert data.feature_names == ("k=1", "k=2") and data.class_names == ("1", "2")
    assert data.train["y"].tolist() == [0, 0, 1]
    assert data.train_groups["g"].tolist() == ["7", "7", "8"]
    data = read("k,y\nTrue,Yes\nTRUE,yes\nfalse,no\n")
    assert data.feature_names == ("k=false", "k=true") and data.class_names == ("no", "yes")
    assert read("k,y\na,Yes\nb,No\n").class_names == ("No", "Yes")  # as they are written
    # Big identifiers keep all their digits.
    big = [2**53, 2**53 + 1]
    assert read(f"k,y\na,{big[0]}\nb,{big[1]}\n").class_names == tuple(map(str, big))
    # Codes with zeros in front are text, versions are not merged.
    codes = read("k,y\n01,a\n1,b\n", categorical_columns=["k"])
    assert codes.feature_names == ("k=01", "k=1")
    with pytest.raises(ValueError, match=r"holds '1.1' and '1.10'.*Write them alike"):
        read("k,y\n1.1,a\n1.10,b\n", categorical_columns=["k"])


def test_categories_are_in_order_of_value(read: Any) -> None:
    data = read("k,y\n10,9\n9,10\n10,9\n", categorical_columns=["k"])
    assert data.feature_names == ("k=9", "k=10") and data.class_names == ("9", "10")


def integers(number: int, times: int = 1) -> str:
    return "x,y\n" + "".join(f"{i},{7 * i}\n" for i in range(number)) * times


def test_labels_are_classes_or_targets_by_a_rule(read: Any) -> None:
    assert read(integers(20, times=2)).class_names == tuple(str(7 * i) for i in range(20))
    assert read(integers(10)).num_classes == 10
    with pytest.raises(ValueError, match=r"'y': the labels are 21 different integers.*Set task"):
        read(integers(21, times=2))
    with pytest.raises(ValueError, match=r"the labels are 11 different integers in 11 rows"):
        read(integers(11))
    data = read(integers(21), task="regression")
    assert (data.task, data.num_classes, data.train["y"].dtype) == ("regression", 0, np.float32)
    np.testing.assert_array_equal(data.train["y"], 7 * np.arange(21))
    assert read(integers(3), numeric_columns=["y"]).task == "regression"
    for options in ({"task": "classification"}, {"categorical_columns": ["y"]}):
        assert read(integers(21), **options).num_classes == 21
    data = read("x;y\n1;1.310,5\n2;120\n3;7\n", decimal=",", thousands=".")
    assert data.task == "regression" and data.train["y"].tolist() == [1310.5, 120, 7]
    assert read("x,y\n1,0.5\n2,1\n", task="classification").class_names == ("0.5", "1")
    assert read("x,y\n1,2024-05-31\n2,2024-06-01\n", task="regression").train["y"].tolist() == [
        19874,
        19875,
    ]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["2024-05-31", "2024-06-01"], {}, "'y': the labels are dates.*Set task to 'regression'"),
        (["5%", "6%"], {}, "'y': the labels are percentages"),
        (["37,4", "36,5"], {}, "column 'y' holds what looks like numbers"),
        (["1", "2", "other"], {}, "line 4: column 'y' holds numbers, but here 'other'"),
        (
            ["low", "high"],
            {"task": "regression"},
            "line 2: column 'y' must hold quantities, but here",
        ),
        (
            ["no", "yes"],
            {"task": "regression"},
            "line 2: column 'y' must hold quantities, but here",
        ),
        ([f"story {i}" for i in range(21)], {}, "21 different values in 21 rows.*Set task"),
        (["a", "b"], {"task": "regresion"}, "unknown task 'regresion'. Did you mean 'regression'"),
    ],
)
def test_labels_that_are_not_clear_are_refused(
    read: Any, labels: list[str], options: dict[str, Any], message: str
) -> None:
    text = "x,y\n" + "".join(f'1,"{label}"\n' for label in labels)
    with pytest.raises(ValueError, match=message):
        read(text, **options)


@pytest.mark.parametrize(
    "header", ["", "id", "patient_id", "Unnamed: 0", "userId", "index", "UUID"]
)
def test_identifiers_are_no_features(read: Any, header: str) -> None:
    text = f"{header},x,y\n7,1,a\n8,2,b\n9,3,a\n"
    with pytest.raises(ValueError, match=f"mine.csv: column '{header}' .* ignore_columns"):
        read(text)
    assert read(text, ignore_columns=[header]).feature_names == ("x",)
    assert read(text, group_columns=[header]).feature_names == ("x",)
    assert read(text, numeric_columns=[header]).feature_names == (header, "x")
    assert read(text, feature_columns=["x", header]).feature_names == ("x", header)


@pytest.mark.parametrize("header", ["bid", "covid", "bmi_index", "humid", "idle"])
def test_names_that_end_alike_are_no_identifiers(read: Any, header: str) -> None:
    assert read(f"{header},y\n7,a\n8,b\n").feature_names == (header,)


def test_all_columns_that_are_wrong_are_named_at_once(read: Any) -> None:
    text = "id,name,dose,zip,day,x,y\n" + "".join(
        f"{i},person {i},{i} kg,0{i},{i + 1}.5.2024,{i},a\n" for i in range(21)
    )
    with pytest.raises(ValueError, match="5 columns cannot be inputs as they are") as caught:
        read(text)
    first, second, third, others = str(caught.value).splitlines()[1:]
    assert "'id' is by its name" in first and "'name' has 21 different" in second
    assert "'dose' holds numbers with the same text" in third and others.endswith("'zip', 'day'")


def test_free_text_is_no_feature(read: Any) -> None:
    rows = [f"story {i} of many,{i % 2}" for i in range(21)]
    with pytest.raises(ValueError, match=r"'notes' has 21 different values in 21 rows.*free text"):
        read("\n".join(["notes,y", *rows]))
    with pytest.raises(ValueError, match=r"the longest of 300 characters.*free text"):
        read(f"notes,y\nfine,a\n{'x' * 300},b\n")
    with pytest.raises(ValueError, match="'notes' has a value of 300 characters, and no group"):
        read(f"notes,x,y\nfine,1,a\n{'x' * 300},2,b\n", group_columns=["notes"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"delimiter": ":"}, ValueError, "Choose one of: 'x,k,y'. With one column.*set delimiter"),
        ({"label_column": "yy"}, ValueError, "unknown column of mine.csv 'yy'"),
        ({"feature_columns": ["x", "y"]}, ValueError, "'y' is among the feature_columns"),
        ({"group_columns": "k"}, TypeError, r"group_columns must be a list such as \['k'\]"),
        ({"ignore_columns": [3]}, TypeError, "ignore_columns must be a list of text, got 3"),
        ({"ignore_columns": ["y"]}, ValueError, "'y' cannot be used and be in ignore_columns"),
        ({"feature_columns": ["x", "x"]}, ValueError, "feature_columns lists a name twice"),
        ({"ignore_columns": ["kk"]}, ValueError, "'kk'. Did you mean 'k'"),
        (
            {"categorical_columns": ["k"], "numeric_columns": ["k"]},
            ValueError,
            "'k' of mine.csv .* in one of the two",
        ),
        (
            {"categorical_columns": ["k"], "group_columns": ["k"]},
            ValueError,
            "'k' of mine.csv .* for features and the label only",
        ),
        (
            {"numeric_columns": ["k"]},
            ValueError,
            "line 2: column 'k' must hold quantities, but .* 'u'",
        ),
        ({"fill": "max"}, ValueError, "unknown fill 'max'"),
        ({"decimal": ";"}, ValueError, "unknown decimal ';'"),
        ({"thousands": "."}, ValueError, "decimal and thousands are both '.'"),
        ({"thousands": "00"}, ValueError, "thousands must be one mark"),
        ({"thousands": "1"}, ValueError, "thousands must be one mark"),
        ({"delimiter": "ab"}, ValueError, "delimiter must be one character"),
        ({"delimiter": '"'}, ValueError, "delimiter must be one character"),
        ({"encoding": "utf-9"}, ValueError, "encoding must name one of text.*'utf-9'"),
        ({"encoding": "base64"}, ValueError, "encoding must name one of text.*'base64'"),
    ],
)
def test_wrong_options(
    read: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read("x,k,y\n1,u,a\n2,v,b\n", **options)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("x;k;y\n1;ü;a\n2;v;b\n", {}),
        ("x\tk\ty\n1\tü\ta\n2\tv\tb\n", {}),
        ("x|k|y\n1|ü|a\n2|v|b\n", {}),
        ("x:k:y\n1:ü:a\n2:v:b\n", {"delimiter": ":"}),
        ("x\tk\ty\n1\tü\ta\n2\tv\tb\n", {"delimiter": "\\t"}),
        ("x,k,y\r\n1,ü,a\r\n2,v,b\r\n", {}),
        ("x,k,y\r1,ü,a\r2,v,b\r", {}),
        ("\n\nx,k,y\n\n1,ü,a\n\n2,v,b", {}),
        ('"x", "k" ,y\n1, "ü" , a\n"2",v,"b"\n', {}),
        ("\ufeffx,k,y\n1,ü,a\n2,v,b\n", {}),
        ("x,k,y\n1,ü,a\n2,v,b\n".encode("utf-16"), {}),
        ("x,k,y\n1,ü,a\n2,v,b\n".encode("utf-32"), {}),
        ("x,k,y\n1,ü,a\n2,v,b\n".encode("utf-16-le"), {"encoding": "utf-16-le"}),
        ("x,k,y\n1,ü,a\n2,v,b\n".encode("latin-1"), {"encoding": "latin-1"}),
    ],
)
def test_delimiters_line_ends_and_encodings(
    read: Any, content: str | bytes, options: dict[str, Any]
) -> None:
    data = read(content, **options)
    assert data.feature_names == ("x", "k=v", "k=ü") and data.class_names == ("a", "b")
    assert inputs(data) == [[1, 0, 1], [2, 1, 0]]


def test_compressed_files(read: Any) -> None:
    content = CSV.encode()
    forms = {
        "mine.csv": content,
        "mine.csv.gz": gzip.compress(content),
        "mine.csv.bz2": bz2.compress(content),
        "mine.tsv.xz": lzma.compress(content),
        "mine.csv.zst": pa.compress(content, "zstd", asbytes=True),
    }
    found = [read(content, file, label_column="label") for file, content in forms.items()]
    for data in found:
        assert data.name == "mine"
        assert_same(data, found[0])
    for file in ("mine.csv.gz", "mine.csv.zst"):
        with pytest.raises(ValueError, match=f"cannot read .*{file}"):
            read(forms[file][:-9], file, label_column="label")


def test_quoted_fields_may_hold_anything(read: Any) -> None:
    data = read('k,y\n"a, ""b""\nc",1\n"d;e",2\n')
    assert data.feature_names == ('k=a, "b"\nc', "k=d;e")
    # Lines of a message are those of the file.
    with pytest.raises(ValueError, match=r"line 5: column 'x' .* 'z'"):
        read('k,x,y\n"a\nb",1,1\n\nc,z,2\n')
    with pytest.raises(ValueError, match="line 5: 2 fields where the header has 3"):
        read('k,x,y\n"a\nb",1,1\n\nc,z\n')


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x,ü,y\n1,2,a\n".encode("latin-1"), "line 1: the byte 0xfc is no text in utf-8.*latin-1"),
        ("x,y\n1,a\n2,ü\n".encode("latin-1"), "line 3: the byte 0xfc.*Set encoding"),
        ("x,y\n1,a\n".encode("utf-16-le"), "zero bytes.*'utf-16-le'|zero bytes.*utf-16-le"),
        (b"PK\x03\x04 and so on", "Excel or zip file: save the sheet as CSV"),
        (b"\x89PNG\r\n\x1a\n\0\0", "it holds zero bytes"),
        ("a;b,c\n1;2,3\n", "',' or ';' could divide the columns.*Set delimiter"),
        ('x,y\n1,a\n2,"b\n3,a\n', "line 3: a quote is opened here and never closed"),
        ("x" * 200_000, "the first line must name the columns"),
        ("", "needs a line of column names and at least one row"),
        ("\n\n", "needs a line of column names and at least one row"),
        (b"PAR1 and so on", "cannot read .*mine.csv"),
    ],
)
def test_files_that_are_no_tables(read: Any, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(content)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train: .* is a folder"):
        from_table(tmp_path, label_column="y")
    with pytest.raises(FileNotFoundError, match=r"train: .*none.csv does not exist"):
        datasets.from_csv(tmp_path / "none.csv", label_column="y")


# ---------------------------------------------------------------- Parquet and frames


def population(rows: int = 60) -> pa.Table:
    rng = np.random.default_rng(0)
    first = datetime.date(2024, 1, 1)
    noon = datetime.datetime(2024, 5, 31, 12)
    day, minute = datetime.timedelta(days=1), datetime.timedelta(minutes=1)
    return pa.table(
        {
            "age": rng.integers(20, 80, rows),
            "dose": rng.normal(size=rows),
            "smokes": rng.random(rows) < 0.5,
            "city": rng.choice(["Oslo", "Lima", "Pune, old"], rows),
            "drug": pa.array(rng.choice(["a", "b"], rows)).dictionary_encode(),
            "admitted": [first + day * int(n) for n in rng.integers(0, 300, rows)],
            "seen": [noon + minute * int(n) for n in rng.integers(0, 9999, rows)],
            "at": [datetime.time(int(h), 30) for h in rng.integers(0, 24, rows)],
            "cost": [decimal.Decimal(int(c)) / 100 for c in rng.integers(0, 10_000, rows)],
            "gap": pa.array([None if i % 7 == 0 else i / 7 for i in range(rows)]),
            "hospital": rng.integers(1, 4, rows),
            "ill": rng.choice(["no", "yes"], rows),
        }
    )


OPTIONS: dict[str, Any] = {"label_column": "ill", "group_columns": ["hospital"], "fill": "mean"}


def test_the_same_population_in_every_form_is_the_same_data_set(tmp_path: Path) -> None:
    table = population()
    frame = table.to_pandas()
    frame.to_csv(tmp_path / "people.csv", index=False)
    european = frame.assign(dose=frame["dose"].map(repr), gap=frame["gap"].map(repr))
    european[["dose", "gap", "cost"]] = european[["dose", "gap", "cost"]].map(
        lambda value: "NA" if str(value) == "nan" else str(value).replace(".", ",")
    )
    european.to_csv(tmp_path / "europe.tsv", index=False, sep="\t", encoding="utf-16")
    pq.write_table(table, tmp_path / "people.parquet")
    frame.to_parquet(tmp_path / "pandas.parquet")
    expected = from_table(table, **OPTIONS)
    assert expected.train["x"].shape == (48, 15)
    assert {*expected.train_groups["hospital"]} == {"1", "2", "3"}
    assert "gap=?" in expected.feature_names and "smokes=true" in expected.feature_names
    for source in (frame, frame.iloc[:, ::1], table.to_pydict(), table.to_batches()[0]):
        assert_same(from_table(source, **OPTIONS), expected)
    for file in ("people.csv", "people.parquet", "pandas.parquet"):
        assert_same(from_table(tmp_path / file, **OPTIONS), expected)
    comma = {"decimal": ",", "missing": ["NA"]}
    assert_same(from_table(tmp_path / "europe.tsv", **OPTIONS, **comma), expected)


TEXTS = ["Oslo", 'say "hi"', "a,b;c|d", "line\nend", "\u00fc\tx", "North  America", "20-29", "?!"]


@settings(max_examples=40)
@given(
    rows=st.lists(
        st.tuples(
            st.floats(-1e6, 1e6),
            st.sampled_from(TEXTS),
            st.dates(datetime.date(1900, 1, 1), datetime.date(2100, 1, 1)),
            st.booleans(),
            st.sampled_from(["no", "yes"]),
        ),
        min_size=1,
        max_size=8,
    ),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    decimal=st.sampled_from([".", ","]),
    ending=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "latin-1"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_a_table_survives_every_way_to_write_it(
    tmp_path_factory: Any,
    rows: list[tuple[Any, ...]],
    delimiter: str,
    decimal: str,
    ending: str,
    encoding: str,
    quoting: Any,
) -> None:
    names = ["x", "k", "when", "flag", "y"]
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator=ending, quoting=quoting)
    writer.writerow(names)
    writer.writerows((repr(x).replace(".", decimal), *others) for x, *others in rows)
    path = tmp_path_factory.mktemp("written") / "table.csv"
    path.write_bytes(file.getvalue().encode(encoding))
    options = {"label_column": "y", "scaling": "standard"}
    typed = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    read = from_table(
        path,
        path,
        decimal=decimal,
        delimiter=delimiter,
        encoding="latin-1" if encoding == "latin-1" else None,
        **options,
    )
    assert_same(read, from_table(typed, typed, **options))


def test_a_long_text_of_many_rows_is_held_once(tmp_path: Path) -> None:
    rows, long = 100_000, "n" * 10_000  # 1 GB, which the file holds once
    columns = {"notes": [long], "x": [1.0], "y": ["a"]}
    table = pa.table({k: pa.array(v).dictionary_encode() for k, v in columns.items()})
    table = table.take(pa.array(np.zeros(rows, np.int64)))
    pq.write_table(table, tmp_path / "long.parquet", store_schema=False)
    peak = pa.default_memory_pool().max_memory()
    with pytest.raises(ValueError, match=r"'notes' has 1 different values.*10,000 characters"):
        from_table(tmp_path / "long.parquet", label_column="y")
    assert pa.default_memory_pool().max_memory() < peak + 1e8


def test_a_frame_after_a_selection() -> None:
    frame = population().to_pandas()
    selected = frame[frame["city"] != "Lima"].set_index("hospital", append=True)
    data = from_table(selected, label_column="ill", fill="mean", group_columns=["hospital"])
    assert "city=Lima" not in data.feature_names  # though nothing keeps pandas from remembering it
    assert not any("index" in name or "hospital" in name for name in data.feature_names)
    assert len(data.train_groups["hospital"]) == len(data.train["y"])


def test_nullable_and_zoned_columns_of_a_frame() -> None:
    frame = pd.DataFrame(
        {
            "a": pd.array([1, None, 3, 4], dtype="Int64"),
            "b": pd.array([True, None, False, True], dtype="boolean"),
            "s": pd.array(["u", "v", None, "u"], dtype="string"),
            "t": pd.date_range("2024-05-31 14:00", periods=4, tz="Europe/Oslo"),  # 12:00 UTC
            "c": pd.Categorical([1, 2, 1, 2]),
            "y": [0.0, 1.0, 0.0, 1.0],
        }
    )
    data = from_table(frame, frame, label_column="y", scaling="none", fill="mean")
    names = ["a", "a=?", "b=false", "b=true", "s=u", "s=v", "t [days]", "c=1", "c=2"]
    assert data.feature_names == tuple(names)
    expected = np.float32([8 / 3, 1, 0, 0, 0, 1, 19875.5, 0, 1])
    np.testing.assert_array_equal(data.train["x"][1], expected)
    assert data.class_names == ("0", "1")


def test_interchange_of_other_frames() -> None:
    class Frame:  # as the frames are that know this protocol only
        def __dataframe__(self, **options: Any) -> Any:
            return pa.table({"x": [1.5, 2.5], "y": ["a", "b"]}).__dataframe__(**options)

    data = from_table(Frame(), Frame(), label_column="y", scaling="none")
    assert inputs(data) == [[1.5], [2.5]] and data.name == "table"


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([[1], [2]], r"the table given as train: column 'x' holds list.*ignore_columns"),
        ([{"a": 1}, {"a": 2}], "column 'x' holds struct"),
        ([b"a", b"b"], "column 'x' holds binary"),
        ([None, None], "column 'x' holds no values"),
        ([np.inf, 1], r"row 0 \(the first is 0\): column 'x' holds numbers, but here 'inf'"),
        ([20240531, 20240601], "may be dates or numbers"),
        ([float("nan"), 1.0], r"row 0 .*: column 'x' is numeric, but here the value is missing"),
    ],
)
def test_columns_of_other_types_are_refused(column: list[Any], message: str) -> None:
    table = {"x": column, "y": ["a", "b"]}
    with pytest.raises(ValueError, match=message):
        from_table(table, table, label_column="y")


def test_durations_are_days_and_big_integers_exact_labels() -> None:
    day = datetime.timedelta(days=1)
    table = pa.table({"x": [day / 2, 3 * day], "y": [2**60, 2**60 + 1]})
    data = from_table(table, table, label_column="y", scaling="none")
    assert data.feature_names == ("x [days]",) and inputs(data) == [[0.5], [3]]
    assert data.class_names == (str(2**60), str(2**60 + 1))


def test_what_is_no_table() -> None:
    with pytest.raises(TypeError, match=r"train must be the path .* got ndarray.*from_arrays"):
        from_table(np.eye(3), label_column="y")
    with pytest.raises(ValueError, match="train is no table that Arrow can hold"):
        from_table(pd.DataFrame({"x": [1, "a"], "y": [0, 1]}), label_column="y")
    with pytest.raises(ValueError, match=r"train is no table that Arrow can hold.*uplicate"):
        from_table(pd.DataFrame([[1, 2, 3]], columns=["x", "x", "y"]), label_column="y")
    twins = pa.table([pa.array([1]), pa.array([2])], names=["x", "x"])
    with pytest.raises(ValueError, match="more than one column named 'x'"):
        from_table(twins, label_column="y")
    with pytest.raises(ValueError, match="has no rows"):
        from_table({"x": [], "y": []}, label_column="y")


# ---------------------------------------------------------------- memory

PEAK = """
import sys
from fedjax_sim.data.datasets import from_table
from_table(sys.argv[1], label_column="y", ignore_columns=["notes"])
for columns in ({}, {"group_columns": ["notes"]}):
    try:
        from_table(sys.argv[1], label_column="y", **columns)
    except ValueError as error:
        assert "100,000 characters" in str(error), error
    else:
        raise AssertionError(columns)
from_table(sys.argv[1], label_column="y", categorical_columns=["notes"])
print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_one_long_field_takes_little_memory(tmp_path: Path) -> None:
    """20,000 rows and a field of 100,000 characters, beyond what Python's csv module reads too."""
    path = tmp_path / "long.csv"
    notes = ["fine", "ill", "x" * 100_000]
    rows = (f"{i % 101},{notes[2 if i == 777 else i % 2]},{i % 2}\n" for i in range(20_000))
    path.write_text("age,notes,y\n" + "".join(rows))
    process = subprocess.run(
        [sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    assert 1024 * int(process.stdout) < 6 * path.stat().st_size + 400e6


def test_fields_of_any_length(read: Any) -> None:
    for length in (140_000, 17 * 2**20):  # Python's csv module ends at 131,072, a block at 16 MiB
        data = read(f"notes,x,y\n{'n' * length},1,a\nb,2,b\n", ignore_columns=["notes"])
        assert inputs(data) == [[1], [2]]
