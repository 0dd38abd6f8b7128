"""The writer is killed at random instants; a reader who globs sees the old run or the new one, whole."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from finops_nb.files import sweep
from finops_nb.writer import FindingsParquetWriter, ParquetWriterConfig

ROWS = 800
RUN = dict(tenant_id='acme', workspace_id='prod', run_ts='2026-11-24T06:00:00Z')

CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from test_writer_crash import write
for version in range(int(sys.stdin.readline()), 10**6):
    write(sys.argv[2], version)
    print(version, flush=True)
"""


def records(version):
    "One version of the run: every row of it says which"
    return (
        dict(
            check_id='a.b',
            status='fail',
            severity={'level': 'low'},
            estimated={'monthly_savings': version},
            source={'schema_version': 1},
            scope=dict(cloud='aws', account_id='1', service='S', resource_id=f'r-{i}'),
        )
        for i in range(ROWS + version % 7)
    )


def write(store, version, **run):
    with FindingsParquetWriter(ParquetWriterConfig(store, run=RUN | {'run_id': 'r1'} | run)) as w:
        w.extend(records(version))


def state(store):
    "version -> rows, as a plain DuckDB glob sees the store"
    if not list(Path(store).rglob('*.parquet')):
        return {}
    sql = f"select estimated.monthly_savings::int, scope.resource_id from read_parquet('{store}/**/*.parquet')"
    rows = duckdb.sql(sql).fetchall()
    assert len(set(rows)) == len(rows), 'a duplicate row'
    return Counter(v for v, _ in rows)


def state_while_it_is_replaced(store):
    "The same while the writer lives: a file that is replaced under the reader's hands is an error, never a wrong row"
    try:
        return state(store)
    except duckdb.Error:
        return {}


def test_fifty_kills_each_leave_one_whole_version(tmp_path):
    store, rng = tmp_path / 'finops_findings', random.Random(1)
    last = interrupted = 0

    def start():
        return subprocess.Popen(
            [sys.executable, '-c', CHILD, str(Path(__file__).parent), str(store)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    following = start()  # imports while its predecessor writes
    for trial in range(50):
        writer, following = following, start()
        with writer:
            writer.stdin.write(f'{last + 1}\n')
            writer.stdin.flush()
            first = writer.stdout.readline() if trial % 2 else ''  # every second one is killed in a later version
            time.sleep(rng.uniform(0, 0.1))
            watch = state_while_it_is_replaced(store)
            assert len(watch) <= 1 and all(n == ROWS + v % 7 for v, n in watch.items()), watch
            time.sleep(rng.uniform(0, 0.1))
            writer.send_signal(signal.SIGKILL)
            said = (first + writer.stdout.read()).split()
        interrupted += any(store.rglob('.tmp-*'))
        after = state(store)
        assert len(after) <= 1 and all(n == ROWS + v % 7 for v, n in after.items()), after
        done = max([last, *map(int, said)])
        assert not done or next(iter(after)) in (done, done + 1), (after, done)  # nothing finished is lost
        for f in store.rglob('*.parquet'):
            pq.ParquetFile(f).metadata  # no torn file
        last = next(iter(after), last)
    with following:
        following.send_signal(signal.SIGKILL)
    assert interrupted and last >= 25  # kills came in the middle of writes, and writes were finished in between
    write(store, last + 1)  # the next run cleans up what the killed ones left
    assert sorted(p.name for p in store.rglob('*') if p.is_file() and p.name != '.lock') == ['part-r1.parquet']


def test_leftovers_of_a_living_process_stay(tmp_path):
    (tmp_path / f'.tmp-{os.getpid()}-x.parquet.part').touch()
    assert sweep(tmp_path) == 0


def test_two_processes_on_one_tenant_take_turns_and_two_tenants_never_meet(tmp_path):
    store = tmp_path / 'finops_findings'
    code = (
        'import sys; sys.path.insert(0, sys.argv[1]); from test_writer_crash import write\n'
        'for _ in range(5): write(sys.argv[2], 0, tenant_id=sys.argv[3], run_id=sys.argv[4])'
    )
    work = [('acme', 'r1'), ('acme', 'r1'), ('acme', 'r2'), ('globex', 'r1')]
    procs = [
        subprocess.Popen(
            [sys.executable, '-c', code, str(Path(__file__).parent), str(store), *w], stderr=subprocess.PIPE, text=True
        )
        for w in work
    ]
    assert [(p.communicate()[1], p.returncode) for p in procs] == [('', 0)] * 4
    rows = duckdb.sql(
        f"""select tenant_id, run_id, count(*), count(distinct finding_id) from read_parquet('{store}/**/*.parquet')
        group by all order by all"""
    ).fetchall()
    assert rows == [('acme', 'r1', ROWS, ROWS), ('acme', 'r2', ROWS, ROWS), ('globex', 'r1', ROWS, ROWS)]
