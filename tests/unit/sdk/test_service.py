"""Loading a service from a file or a module: where it is imported from, and the one line for each that can't be used."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import cast

import pytest

import upnext
from upnext import service
from upnext.errors import ConflictError, ServiceError

ROOT = Path(__file__).parents[3]
Write = Callable[[str, str], Path]

SHOP = """
import upnext
worker = upnext.Worker("shop")
@worker.task
async def charge(order_id: str): ...
"""


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """write(NAME, CODE) -> its path under a fresh folder. What tests import is forgotten afterwards."""
    modules, path = set(sys.modules), list(sys.path)

    def write(name: str, code: str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(code))
        return file

    yield write
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    sys.path[:] = path


def refused(what: str | Path, *, only: tuple[str, ...] = ()) -> str:
    with pytest.raises(ServiceError) as error:
        service.load(str(what), only=only)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_is_imported_by_its_stem(write: Write, tmp_path: Path) -> None:
    write("stock_of_test.py", "LEFT = 3\n")
    file = write("shop_t1.py", SHOP + "import stock_of_test\nassert __name__ == 'shop_t1'\n")
    loaded = service.load(str(file))
    assert (loaded.spec.name, loaded.spec.path) == ("shop_t1", str(file))
    assert [spec.name for spec in loaded.spec.workers] == ["shop"]
    assert loaded.spec.workers[0].tasks.keys() == {"charge"}
    assert loaded.workers == (loaded.module.worker,)
    assert sys.modules["shop_t1"] is loaded.module
    assert sys.path[0] == str(tmp_path)
    assert service.load(str(file)).module is loaded.module


def test_a_file_in_a_package_is_imported_as_pkg_mod(write: Write, tmp_path: Path) -> None:
    write("pkg_t2/__init__.py", "")
    write("pkg_t2/deep/__init__.py", "")
    write("pkg_t2/prices.py", "TEA = 4\n")
    file = write("pkg_t2/deep/shop.py", SHOP + "from ..prices import TEA\nassert __name__ == 'pkg_t2.deep.shop'\n")
    loaded = service.load(str(file))
    assert loaded.spec.name == "pkg_t2.deep.shop"
    assert sys.modules["pkg_t2.deep"].shop is loaded.module
    assert sys.path[0] == str(tmp_path)
    assert str(file.parent) not in sys.path


def test_a_module_is_found_from_the_working_directory(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("pkg_t3/__init__.py", "")
    write("pkg_t3/shop.py", SHOP)
    monkeypatch.chdir(tmp_path)
    loaded = service.load("pkg_t3.shop")
    assert (loaded.spec.name, loaded.spec.path) == ("pkg_t3.shop", "pkg_t3.shop")
    assert loaded.workers[0].name == "shop"


def test_a_package_can_be_a_service(write: Write, tmp_path: Path) -> None:
    write("pkg_t4/__init__.py", SHOP + "from .prices import TEA\n")
    write("pkg_t4/prices.py", "TEA = 4\n")
    assert service.load(str(tmp_path / "pkg_t4")).workers[0].name == "shop"


def test_it_is_compiled_from_source_whatever_the_pyc_says(write: Write) -> None:
    file = write("shop_t5.py", SHOP + "ANSWER = 1\n")
    stamp = file.stat()
    import py_compile

    py_compile.compile(str(file), doraise=True)
    file.write_text(file.read_text().replace("ANSWER = 1", "ANSWER = 2"))
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # an edit within the same second, of the same size
    assert service.load(str(file)).module.ANSWER == 2


def test_workers_are_found_once_in_order_and_told_apart(write: Write) -> None:
    file = write(
        "shop_t6.py",
        """
        import upnext
        first = upnext.Worker()
        named = upnext.Worker("worker-2")
        again = first
        second = upnext.Worker()
        """,
    )
    assert [spec.name for spec in service.load(str(file)).spec.workers] == ["worker", "worker-2", "worker-3"]


def test_only_keeps_the_workers_of_these_names(write: Write) -> None:
    file = write(
        "shop_t7.py", "import upnext\na = upnext.Worker('a')\nb = upnext.Worker('b')\nc = upnext.Worker('c')\n"
    )
    loaded = service.load(str(file), only=["c", "a"])
    assert [spec.name for spec in loaded.spec.workers] == ["a", "c"]
    assert [worker.name for worker in loaded.workers] == ["a", "c"]
    assert refused(file, only=("a", "d")) == f"{file}: has no worker 'd'; there are: a, b, c"


def test_what_is_not_there(tmp_path: Path, write: Write) -> None:
    assert refused(tmp_path / "gone.py") == f"{tmp_path}/gone.py: there is no such file"
    assert refused("gone.py") == "gone.py: there is no such file"
    assert refused("gone_t8.shop") == "gone_t8.shop: there is no such module, and no file of that name"
    assert refused("not a module") == "'not a module': is neither a file nor the name of a module"
    assert refused(tmp_path) == f"{tmp_path}: is a folder; name the service's file in it"
    text = write("shop.txt", SHOP)
    assert refused(text) == f"{text}: is not a Python file (its name doesn't end in .py)"


def test_what_is_not_python(write: Write, tmp_path: Path) -> None:
    file = write("shop_t9.py", "def f(:\n")
    assert refused(file) == f"{file}:1: SyntaxError: invalid syntax"
    binary = tmp_path / "shop_t10.py"
    binary.write_bytes(b"\x7fELF\x00\x01\xff\xfe")
    assert refused(binary).startswith(f"{binary}")
    assert "shop_t10" not in sys.modules


@pytest.mark.parametrize("as_module", [False, True])
def test_the_traceback_of_an_import_begins_with_the_services_code(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_module: bool
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write("helper_t1.py", "def fail():\n    raise KeyError('x')\nfail()")
    file = write("broken_t1.py", "import helper_t1")
    with pytest.raises(ServiceError) as caught:
        service.load("broken_t1" if as_module else str(file))
    frames = traceback.extract_tb(cast("BaseException", caught.value.__cause__).__traceback__)
    files = [Path(frame.filename).name for frame in frames if not frame.filename.startswith("<frozen")]
    assert files == ["broken_t1.py", "helper_t1.py", "helper_t1.py"]
    assert Path(frames[0].filename).name == "broken_t1.py"


def test_a_syntax_error_of_the_service_has_its_place_and_no_frame_of_the_import(write: Write) -> None:
    with pytest.raises(ServiceError) as caught:
        service.load(str(write("broken_t2.py", "def f(")))
    text = "".join(traceback.format_exception(caught.value.__cause__))
    assert "broken_t2.py" in text
    assert "Traceback" not in text


def test_an_import_that_fails_gives_the_last_line_and_keeps_the_cause(write: Write) -> None:
    file = write("shop_t11.py", "import upnext\n1 / 0\n")
    with pytest.raises(ServiceError, match=r"shop_t11\.py: ZeroDivisionError: division by zero") as error:
        service.load(str(file))
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    assert "shop_t11" not in sys.modules
    assert refused(write("shop_t12.py", "import no_such_thing\n")).endswith(
        "shop_t12.py: ModuleNotFoundError: No module named 'no_such_thing'"
    )
    assert refused(write("shop_t13.py", "import sys\nsys.exit(3)\n")).endswith("shop_t13.py: SystemExit: 3")


def test_an_error_in_a_package_around_it_is_not_a_missing_module(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("pkg_t14/__init__.py", "import no_such_thing\n")
    file = write("pkg_t14/shop.py", SHOP)
    monkeypatch.chdir(tmp_path)
    for given in (str(file), "pkg_t14.shop"):
        assert refused(given) == f"{given}: ModuleNotFoundError: No module named 'no_such_thing'"


def test_without_a_worker(write: Write) -> None:
    file = write("shop_t15.py", "x = 1\n")
    assert refused(file).startswith(f"{file}: has no Worker; ")


def test_wrong_declarations_name_their_line(write: Write) -> None:
    twice = write("shop_t16.py", SHOP + "@worker.task\nasync def charge(): ...\n")
    with pytest.raises(ConflictError, match=r"shop_t16\.py:6: worker 'shop': two tasks are named 'charge': "):
        service.load(str(twice))
    cron = write("shop_t17.py", SHOP + "@worker.cron('61 * * * *')\nasync def tick(): ...\n")
    assert refused(cron).startswith(f"{cron}:6: cron 'tick': ")
    url = write("shop_t18.py", "import upnext\nw = upnext.Worker(redis_url='ftp://x')\n")
    assert refused(url).startswith(f"{url}:2: ")


def test_two_workers_with_one_task_or_one_name(write: Write) -> None:
    file = write("shop_t19.py", SHOP + "other = upnext.Worker('other')\n@other.task\ndef charge(): ...\n")
    with pytest.raises(ConflictError, match="workers 'shop' and 'other' both have a task named 'charge'"):
        service.load(str(file))
    assert service.load(str(file), only=["other"]).spec.workers[0].name == "other"
    named = write("shop_t20.py", SHOP + "again = upnext.Worker('shop')\n")
    assert refused(named).endswith("two workers are named 'shop'")


def test_a_file_that_would_hide_another_module_is_refused(write: Write) -> None:
    file = write("json.py", SHOP)
    assert refused(file).startswith(f"{file}: another module is named 'json' already (")


def test_the_example(write: Write) -> None:
    loaded = service.load(str(ROOT / "examples" / "orders.py"))
    (spec,) = loaded.spec.workers
    assert (loaded.spec.name, spec.name) == ("orders", "orders")
    handlers = {name for name, task in spec.tasks.items() if task.event == "order.placed"}
    assert handlers == {"order.placed.send_confirmation", "order.placed.reserve_stock"}
    assert spec.tasks["charge_card"].options.retries
    assert not spec.tasks["render_invoice"].is_async
    (cron,) = (task.cron for task in spec.tasks.values() if task.cron is not None)
    assert cron.schedule == "* * * * * *"
    for task in spec.tasks.values():
        if task.kind == "task":
            task.arguments.describe()
    item = {"sku": "tea", "quantity": 2, "price": "4.50"}
    args, kwargs = spec.tasks["render_invoice"].arguments.decode(
        spec.tasks["render_invoice"].arguments.encode((), {"order_id": "o-1", "items": [item]})
    )
    assert "o-1,tea,2,4.50,9.00" in loaded.module.render_invoice(*args, **kwargs)
    assert isinstance(loaded.module.worker, upnext.Worker)
