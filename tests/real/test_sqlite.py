"""SQLite, as its authors compile it with emscripten, works on databases in shared heaps; Python's sqlite3 says what is right."""

import sqlite3

import pytest

from shmwasm import on_client

MODULE = "@sqlite.org/sqlite-wasm@3.54.1-build1/dist/sqlite3.wasm"

OK, ROW, DONE = 0, 100, 101
INTEGER, FLOAT, TEXT, NULL = 1, 2, 3, 5
OPEN_READWRITE_CREATE = 6
DESERIALIZE_READONLY = 4
SERIALIZE_NOCOPY = 1
NO_SUCH_FILE = -44

QUERIES = [
    "SELECT count(*), sum(id), min(price), max(price), avg(price) FROM item",
    "SELECT maker, count(*), total(price), max(name) FROM item GROUP BY maker ORDER BY maker",
    "SELECT * FROM item WHERE name LIKE '%7%' AND price > 50 ORDER BY price DESC, id LIMIT 100",
    "SELECT country, count(*) FROM item JOIN maker ON maker.name = item.maker GROUP BY 1 HAVING count(*) > 10 ORDER BY 2, 1",
    "SELECT id, picture, length(picture) FROM item WHERE picture IS NOT NULL ORDER BY length(picture) DESC, id LIMIT 40",
    "SELECT id, sum(price) OVER (PARTITION BY maker ORDER BY id ROWS 3 PRECEDING) FROM item ORDER BY id LIMIT 500",
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000) SELECT sum(i * i), group_concat(i) FROM n",
    "SELECT json_group_array(json_array(id, name, maker)) FROM (SELECT * FROM item ORDER BY name, id)",
]

UPDATES = [
    "UPDATE item SET price = price * 2 WHERE maker = 'maker 3'",
    "DELETE FROM item WHERE id % 10 = 4",
    "INSERT INTO item SELECT id + 100000, name || ' again', maker, price, zeroblob(300) FROM item WHERE id < 1500",
    "CREATE TABLE summary AS SELECT maker, count(*) AS items, total(price) AS price FROM item GROUP BY maker",
    "CREATE INDEX item_by_price ON item (price)",
]

pytestmark = pytest.mark.timeout(400)  # the first test downloads the packages


ENVIRONMENT = {
    "__syscall_openat": on_client(lambda caller, directory, path, flags, rest: NO_SUCH_FILE),  # it looks for /dev/urandom
    "emscripten_date_now": on_client(lambda caller: 1.75e12),
}


class Connection:
    """SQLite in an instance. All that it is given lies in the heap: names, statements, parameters, and the database itself."""

    def __init__(self, instance, heap):
        self.instance = instance
        self.heap = heap
        instance.call("__wasm_call_ctors")
        self._answer = heap.calloc(8, 1)
        with self.text(":memory:") as name:
            assert instance.call("sqlite3_open_v2", name, self._answer, OPEN_READWRITE_CREATE, 0) == OK
        self._database = self._answered("u4")

    def open_image(self, address, size, capacity, flags):
        """Make the bytes at `address` the database: they are neither copied nor moved."""
        with self.text("main") as schema:
            self._check(self.instance.call("sqlite3_deserialize", self._database, schema, address, size, capacity, flags))

    def image(self):
        """Return where the database lies, and its size."""
        with self.text("main") as schema:
            where = self.instance.call("sqlite3_serialize", self._database, schema, self._answer, SERIALIZE_NOCOPY)
        return where & 0xFFFF_FFFF, self._answered("u8")

    def execute(self, statement, *parameters):
        """Return the rows of a statement. The parameters are blocks: blobs in the heap."""
        with self.text(statement) as text:
            self._check(self.instance.call("sqlite3_prepare_v2", self._database, text, -1, self._answer, 0))
        prepared = self._answered("u4")
        for index, block in enumerate(parameters, 1):
            self._check(self.instance.call("sqlite3_bind_blob", prepared, index, block, len(block), 0))
        rows = []
        step = self.instance.exports.sqlite3_step
        while (status := step(prepared)) == ROW:
            rows.append(tuple(self._column(prepared, index) for index in range(self._columns(prepared))))
        assert status == DONE, self._message()
        self._check(self.instance.call("sqlite3_finalize", prepared))
        return rows

    def text(self, content):
        """Return a block that holds a text as C expects it."""
        encoded = content.encode() + b"\0"
        block = self.heap.malloc(len(encoded))
        block.view[: len(encoded)] = encoded
        return block

    def _columns(self, prepared):
        return self.instance.call("sqlite3_column_count", prepared)

    def _column(self, prepared, index):
        kind = self.instance.call("sqlite3_column_type", prepared, index)
        if kind == INTEGER:
            return self.instance.call("sqlite3_column_int64", prepared, index)
        if kind == FLOAT:
            return self.instance.call("sqlite3_column_double", prepared, index)
        if kind == NULL:
            return None
        content = self._bytes(prepared, index)
        return content.decode() if kind == TEXT else content

    def _bytes(self, prepared, index):
        where = self.instance.call("sqlite3_column_blob", prepared, index) & 0xFFFF_FFFF
        size = self.instance.call("sqlite3_column_bytes", prepared, index)
        return bytes(self.instance.memory[where : where + size])

    def _answered(self, kind):
        return int(self._answer.ndarray(kind)[0])

    def _check(self, status):
        assert status == OK, self._message()

    def _message(self):
        where = self.instance.call("sqlite3_errmsg", self._database)
        return bytes(self.instance.memory[where : where + 200]).split(b"\0")[0].decode()


def items():
    for number in range(4000):
        picture = bytes((number * index) % 251 for index in range(number % 3000)) if number % 40 == 0 else None
        yield number, f"näme {number * 7919 % 4001}", f"maker {number % 17}", (number * 37 % 1000) / 8, picture


@pytest.fixture
def native():
    """The same database in Python's own SQLite."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT, maker TEXT, price REAL, picture BLOB)")
    connection.execute("CREATE TABLE maker (name TEXT, country TEXT)")
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO item VALUES (?, ?, ?, ?, ?)", items())
    connection.executemany("INSERT INTO maker VALUES (?, ?)", [(f"maker {i}", f"country {i % 5}") for i in range(17)])
    connection.execute("COMMIT")
    yield connection
    connection.close()


@pytest.fixture
def connect(spawn):
    return lambda chain, heap: Connection(spawn(MODULE, chain, env=ENVIRONMENT), heap)


def test_queries_over_a_database_file_that_is_mapped_read_only_find_what_native_sqlite_finds(
    connect, shared_runtime, heap, native, tmp_path
):
    path = tmp_path / "items.sqlite"
    path.write_bytes(native.serialize())
    size = path.stat().st_size
    disk = shared_runtime.create_shared_heap(pre_allocated=str(path), read_only=True)
    chain = shared_runtime.chain_shared_heaps(heap, disk)
    database, other = connect(chain, heap), connect(chain, heap)
    for connection in (database, other):  # two processes read the same pages
        connection.open_image(disk.start, size, size, DESERIALIZE_READONLY)
    for query in QUERIES:
        assert database.execute(query) == native.execute(query).fetchall(), query
    assert other.execute(QUERIES[1]) == native.execute(QUERIES[1]).fetchall()
    database.instance.close()
    other.instance.close()
    shared_runtime.unchain_shared_heaps(chain)
    disk.close()


def test_a_database_in_a_heap_is_changed_in_place_as_native_sqlite_changes_it(connect, heap, native):
    image = native.serialize()
    block = heap.malloc(8 << 20)
    block.view[: len(image)] = image
    database = connect(heap, heap)
    database.open_image(block, len(image), len(block), 0)
    for update in UPDATES:
        database.execute(update)
        native.execute(update)
    where, size = database.image()
    assert where == block.address
    changed = sqlite3.connect(":memory:")
    changed.deserialize(bytes(block.view[:size]))
    assert changed.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert list(changed.iterdump()) == list(native.iterdump())
    changed.close()


def test_blobs_go_from_a_heap_into_a_private_database_and_back_unchanged(connect, heap):
    database = connect(heap, heap)
    database.execute("CREATE TABLE parts (id INTEGER PRIMARY KEY, content BLOB)")
    contents = [bytes((size + index * index) % 256 for index in range(size)) for size in (1, 16, 200, 5000, 100_000)]
    for content in contents:
        block = heap.malloc(len(content))
        block.view[:] = content
        database.execute("INSERT INTO parts (content) VALUES (?)", block)
        block.free()
    assert database.execute("SELECT content FROM parts ORDER BY id") == [(content,) for content in contents]
