"""Loads are killed before every change of the file system and at random instants; a month is the old one or the new."""
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from finops_nb.bill.load import load_bill
from finops_nb.bill.store import attach_charges, charges_dir, open_charges, remove_bill
from finops_nb.catalog import connect
from finops_nb.errors import ConfigError

ROWS = 50
STARTS = 'BillingPeriodStart', 'ChargePeriodStart', 'ChargePeriodEnd'
COSTS = 'BilledCost', 'EffectiveCost', 'ContractedCost', 'ListCost'

# Forks a child per line it reads and says how the child ended. The child kills itself before the n-th change that it
# makes below the store, n = 0 lets it live. Forking is safe because this process never opens a database.
ZYGOTE = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_bill_crash import act

CHANGES = {'os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'os.link', 'shutil.rmtree', 'open'}

def arm(store, n):
    seen = [0]
    def hook(event, args):
        if event not in CHANGES or not str(args[0]).startswith(store): return
        if event == 'open' and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT): return
        seen[0] += 1
        if seen[0] == n: os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

for line in sys.stdin:
    n, store, what, source = line.rstrip().split('|')
    pid = os.fork()
    if not pid:
        if int(n): arm(store, int(n))
        act(store, what, source)
        os._exit(0)
    if int(n) < 0:   # killed from outside
        print(pid, flush=True)
        sys.stdin.readline()
    print('killed' if os.waitpid(pid, 0)[1] else 'done', flush=True)
"""


def act(store, what, source):
    if what == 'load': load_bill(source, store, 'acme')
    else: remove_bill(store, 'acme', 'bill')


def write(path, rows=ROWS, **versions):
    "A FOCUS file in which every row of a month carries the month's version as its cost"
    known = dict(BillingAccountId="'999988887777'", SubAccountId="'111122223333'", BillingCurrency="'USD'",
                 ChargeCategory="'Usage'", InvoiceId="'i-' || md5(i::varchar)")
    selects = []
    for month, version in versions.items():
        times = dict.fromkeys(STARTS, f"timestamptz '2026-{month[1:]}-01'")
        money = dict.fromkeys(COSTS, f'{version}::decimal(20, 6)')
        row = ', '.join(f'{v} as "{n}"' for n, v in (times | known | money).items())
        selects.append(f'select {row} from range({rows} + {version}) t(i)')
    with connect() as con: con.execute(f"copy ({' union all '.join(selects)}) to '{path}' (format parquet)")
    return path


def versions(rows, size=ROWS):
    "month -> version, from (month, version, rows); a month has one version and all its rows"
    found = {}
    for month, version, n in rows:
        assert month not in found and n == size + version, rows
        found[month] = version
    return found


SQL = "strftime(billing_period_start, '%m') as month, billed_cost::int as version, count(*)"


def view(store, size=ROWS):
    with connect() as con:
        attach_charges(con, open_charges(store, 'acme'))
        return versions(con.sql(f'select {SQL} from charges group by all').fetchall(), size)


def glob(store, size=ROWS):
    pattern = f'{store}/charges/tenant_id=acme/billing_period=*/*.parquet'
    with connect() as con:
        if not con.sql(f"from glob('{pattern}')").fetchall(): return {}
        return versions(con.sql(f"select {SQL} from read_parquet('{pattern}') group by all").fetchall(), size)


def leftovers(store):
    tenant = charges_dir(store, 'acme')
    files = [p for p in tenant.rglob('*') if p.is_file()]
    known = {p for p in files if p.suffix == '.parquet' or p.name == '.lock'}
    return sorted(p.name for p in {*files} - known - {*(tenant/'manifests').glob('2026-*.json')})


@pytest.fixture
def zygote():
    "ask(n, store, what, source) -> 'killed' or 'done'"
    command = [sys.executable, '-c', ZYGOTE, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        def ask(n, store, what, source='', wait=None):
            process.stdin.write(f'{n}|{store}|{what}|{source}\n')
            process.stdin.flush()
            if wait is not None:
                pid = int(process.stdout.readline())
                time.sleep(wait)
                os.kill(pid, signal.SIGKILL)   # not reaped yet, so the id is still the child's
                process.stdin.write('\n')
                process.stdin.flush()
            return process.stdout.readline().strip()
        yield ask
        process.stdin.close()


@pytest.mark.slow
def test_killed_before_each_change_a_load_leaves_old_or_new_months(tmp_path, zygote):
    old = write(tmp_path/'old.parquet', m01=1, m02=2)
    new = write(tmp_path/'new.parquet', m01=3, m02=4, m03=5)
    assert zygote(0, tmp_path/'before', 'load', old) == 'done'
    order = [{'01': 1, '02': 2}, {'01': 3, '02': 2}, {'01': 3, '02': 4}, {'01': 3, '02': 4, '03': 5}]
    reached, n, how = [], 0, 'killed'
    while how == 'killed':
        n, store = n + 1, tmp_path/f'store{n}'
        shutil.copytree(tmp_path/'before', store)
        how = zygote(n, store, 'load', new)
        found = view(store)
        assert found in order and glob(store) == found, n
        reached.append(order.index(found))
        load_bill(new, store, 'acme')
        assert view(store) == glob(store) == order[-1] and not leftovers(store)
        assert len([*(charges_dir(store, 'acme')/'manifests').iterdir()]) == 3
        shutil.rmtree(store)
    assert n > 12 and reached == sorted(reached) and {*reached} == {0, 1, 2, 3}
    assert reached.count(3) > 1   # also killed after the last rename, while tidying up


def test_killed_before_each_change_a_first_load_leaves_nothing_or_all_of_a_month(tmp_path, zygote):
    bill, n, how, reached = write(tmp_path/'a.parquet', m01=1), 0, 'killed', []
    while how == 'killed':
        n, store = n + 1, tmp_path/f'store{n}'
        how = zygote(n, store, 'load', bill)
        reached.append(view(store))
        assert glob(store) == reached[-1]
    assert n > 12 and reached[0] == {} and reached[-1] == {'01': 1} and all(r in ({}, {'01': 1}) for r in reached)


def test_killed_before_each_change_a_removal_leaves_whole_months(tmp_path, zygote):
    bill = write(tmp_path/'a.parquet', m01=1, m02=2)
    assert zygote(0, tmp_path/'before', 'load', bill) == 'done'
    n, how, reached = 0, 'killed', []
    while how == 'killed':
        n, store = n + 1, tmp_path/f'store{n}'
        shutil.copytree(tmp_path/'before', store)
        how = zygote(n, store, 'remove')
        reached.append(view(store))
        assert glob(store) == reached[-1]
        remove_bill(store, 'acme', 'bill')
        assert view(store) == {} and not leftovers(store)
    assert n > 5 and [r for m, r in enumerate(reached) if r not in reached[:m]] == [{'01': 1, '02': 2}, {'02': 2}, {}]


@pytest.mark.slow
def test_killed_at_any_instant_of_a_large_load_the_old_months_stand(tmp_path, zygote):
    size, store, rng = 200_000, tmp_path/'store', random.Random(1)
    bills = [write(tmp_path/f'{v}.parquet', size, m01=v, m02=v + 1) for v in (1, 3)]
    interrupted, found = 0, {}
    for trial in range(12):
        before, how = found, zygote(-1, store, 'load', bills[trial % 2], wait=rng.uniform(0, 0.8))
        found = view(store, size)
        assert glob(store, size) == found
        version = (1, 3)[trial % 2]
        wanted = {'01': version, '02': version + 1}
        assert found in (before, before | {'01': version}, wanted) and (how == 'killed' or found == wanted)
        interrupted += bool(leftovers(store))
    assert interrupted
    load_bill(bills[0], store, 'acme')
    assert view(store, size) == {'01': 1, '02': 2} and not leftovers(store)


WRITER = """
import sys
from finops_nb.bill.load import load_bill
print('ready', flush=True)
while True:
    for source in sys.argv[2:]: load_bill(source, sys.argv[1], 'acme')
"""


def test_a_reader_beside_a_loader_sees_one_version_of_a_month(tmp_path):
    bills = [write(tmp_path/f'{v}.parquet', m01=v) for v in (1, 2)]
    load_bill(bills[0], tmp_path, 'acme')
    command = [sys.executable, '-c', WRITER, str(tmp_path), *map(str, bills)]
    seen, overtaken = set(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        writer.stdout.readline()
        end = time.monotonic() + 4
        while time.monotonic() < end:
            for look in (view, glob):
                try: seen.add(look(tmp_path)['01'])   # versions() looks for mixtures
                except (ConfigError, duckdb.Error): overtaken += 1   # told, and asked again
        writer.kill()
    assert seen == {1, 2}
