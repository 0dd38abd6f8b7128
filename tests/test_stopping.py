"""Runs that fail or are stopped: nobody else is touched, the notebook stays as evidence, nothing is left running."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from finops_nb.catalog import TABLES
from finops_nb.inventory import inventory_dir, new_folder, publish, write_table
from finops_nb.runner import plan_run
from finops_nb.settings import load

AS_OF = '2026-11-24T06:00:00Z'
RUN = [sys.executable, '-m', 'finops_nb', 'run', '--as-of', AS_OF, '--checker', 'mine:Mine']
MINE = """
import os, time
from pathlib import Path

class Mine:
    checker_id = 'x.y.mine'
    def run(self, ctx):
        if Path('wait').exists():
            Path(f'started-{ctx.tenant_id}').write_text(str(os.getpid()))
            time.sleep(60)
        yield dict(check_id=self.checker_id, status='fail', severity={'level': 'low'},
                   scope=dict(account_id='1', service='AmazonS3', resource_id='bucket'))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "An operator's folder: two tenants with a snapshot each, and a check that waits when told to"
    (tmp_path/'mine.py').write_text(MINE)
    sections = (f'[tenant:{t}]\n[workspace:{t}/main]\naccounts = {a*12}\nrole = none\n'
                for t, a in (('acme', '1'), ('globex', '2')))
    (tmp_path/'settings.ini').write_text('[finops]\nruns_dir = my {runs}\n' + ''.join(sections))
    monkeypatch.syspath_prepend(tmp_path)
    settings = load(tmp_path/'settings.ini')
    for tenant in settings.tenants:
        plan = plan_run(settings, tenant, as_of=AS_OF, checkers=['mine:Mine'])
        with new_folder(inventory_dir(settings.data_dir, tenant), plan.snapshot_id) as made:
            schema = TABLES['coverage'].schema
            entry = write_table(made/'coverage.parquet', schema, [pa.Table.from_pylist([], schema=schema)])
            publish(made, dict(tenant_id=tenant, workspace_id='main', snapshot_id=plan.snapshot_id, coverage={},
                               tables={'coverage': entry}))
    sys.modules.pop('mine', None)
    return tmp_path


def is_alive(pid):
    try: return 'Z' not in Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except FileNotFoundError: return False


def until(true, seconds=30):
    for _ in range(seconds*20):
        if true(): return
        time.sleep(0.05)
    raise AssertionError(f'not true after {seconds} s')


@pytest.mark.slow
def test_one_tenant_that_fails_stops_nobody_else(folder):
    damaged = next((folder/'data'/'inventory'/'tenant_id=acme').glob('*/coverage.parquet'))
    damaged.write_bytes(b'PAR1')
    done = subprocess.run([*RUN, '--all'], cwd=folder, capture_output=True, text=True)
    *runs, last = done.stdout.splitlines()
    lines = [*sorted(runs), last]   # each run says so when it ends, whichever is first
    assert done.returncode == 1
    assert lines[0].startswith('err  acme/main: ') and 'is not the file that was written' in lines[0], lines
    assert lines[1].startswith('ok   globex/main: 1 findings'), lines
    assert lines[2] == '2 runs, 1 complete, 1 with gaps, rejects or errors'
    assert 'TCP' not in done.stderr
    evidence = next((folder/'my {runs}'/'acme').iterdir())
    assert 'ContractError' in evidence.read_text()
    assert json.loads((folder/'webapp_data'/'globex'/'findings.json').read_text())['count'] == 1
    assert not (folder/'webapp_data'/'acme').exists()


@pytest.mark.slow
@pytest.mark.parametrize('which', ['--all', '--tenant=acme'])
def test_sigterm_leaves_no_process_and_no_half_a_run(folder, which):
    (folder/'wait').touch()
    tenants = ['acme', 'globex'] if which == '--all' else ['acme']
    started = [folder/f'started-{t}' for t in tenants]
    with subprocess.Popen([*RUN, which], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        until(lambda: all(p.exists() and p.read_text() for p in started))
        kernels = [int(p.read_text()) for p in started]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    until(lambda: not any(map(is_alive, kernels)), 10)
    assert not list((folder/'data').rglob('finops_findings/**/part-*.parquet'))
    assert not list((folder/'data'/'finops_runs').rglob('*.json'))
    for t in tenants: assert len(list((folder/'my {runs}'/t).glob('*.ipynb'))) == 1  # how far it came
    if which == '--all': return

    (folder/'wait').unlink()   # the same command again does what is left
    again = subprocess.run([*RUN, which], cwd=folder, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert not list(folder.rglob('.tmp-*'))
    assert os.listdir(folder/'webapp_data') == tenants
