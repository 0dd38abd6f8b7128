"""An exporting process is killed at random instants; `current.json` always names a whole export."""
import json
import random
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest

from finops_nb.export_json import ExportConfig, run_export
from finops_nb.writer import FindingsParquetWriter, ParquetWriterConfig

SIZES = 3000, 3500, 4000   # findings of three stores, exported in turn: each export has a twin and comes back later

CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from test_export_crash import export
for version in range(int(sys.stdin.readline()), 10**6):
    print(export(sys.argv[2], version)['export_id'], flush=True)
"""


def records(n):
    for i in range(n):
        scope = dict(cloud='aws', account_id='1', service='S', resource_id=f'r-{i}')
        yield dict(check_id='a.b', status='fail', severity={'level': 'low'}, scope=scope,
                   estimated={'monthly_savings': i}, source={'schema_version': 1})


def write(folder, n):
    run = dict(tenant_id='acme', workspace_id='prod', run_id='r1', run_ts='2026-11-24T06:00:00Z')
    with FindingsParquetWriter(ParquetWriterConfig(Path(folder)/str(n)/'finops_findings', run=run)) as w:
        w.extend(records(n))


def export(folder, version):
    n = SIZES[version//2 % 3]
    return run_export(ExportConfig(f'{folder}/{n}/finops_findings/**/*.parquet', 'acme', f'{folder}/web', keep=2))


def whole(web, patience=5):
    "The current export, every file checked; None when there is none yet. A reader that was overtaken starts again"
    try: said = (web/'current.json').read_bytes()
    except FileNotFoundError: return None
    current = json.loads(said)
    folder = web/'exports'/current['export_id']
    try:
        for name, fact in current['files'].items():
            data = (folder/name).read_bytes()
            assert (len(data), sha256(data).hexdigest()) == (fact['bytes'], fact['sha256']), name
        found = json.loads((folder/'findings.json').read_bytes())
        assert found['count'] == len(found['findings']) in SIZES
        assert set(current['files']) >= {'findings.json', 'findings.json.gz', 'summary.json', 'findings.parquet'}
    except FileNotFoundError:
        assert patience and (web/'current.json').read_bytes() != said, 'current.json names a file that is not there'
        return whole(web, patience - 1)
    return current['export_id']


@pytest.mark.slow
def test_ten_kills_and_current_json_always_names_a_whole_export(tmp_path):
    web, rng = tmp_path/'web'/'acme', random.Random(1)
    for n in SIZES: write(tmp_path, n)
    interrupted, done = 0, []

    def start():
        command = [sys.executable, '-c', CHILD, str(Path(__file__).parent), str(tmp_path)]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    following = start()  # imports while its predecessor works
    for trial in range(10):
        process, following = following, start()
        with process:
            process.stdin.write(f'{len(done)}\n')
            process.stdin.flush()
            first = process.stdout.readline() if trial % 2 else ''  # every second one is killed in a later export
            time.sleep(rng.uniform(0, 0.3))
            whole(web)  # while it works
            time.sleep(rng.uniform(0, 0.1))
            process.send_signal(signal.SIGKILL)
            done += (first + process.stdout.read()).split()
        after = whole(web)
        assert not done or after, 'an export that was finished is lost'
        interrupted += any(web.rglob('.tmp-*'))
    with following: following.send_signal(signal.SIGKILL)
    assert interrupted and len(set(done)) == 3  # kills came in the middle, and exports were finished in between
    last = export(tmp_path, len(done))
    assert whole(web) == last['export_id']
    assert not list(web.rglob('.tmp-*')) and len(list((web/'exports').iterdir())) <= 2


def test_two_processes_that_export_one_tenant_take_turns(tmp_path):
    for n in SIZES: write(tmp_path, n)
    code = ("import sys; sys.path.insert(0, sys.argv[1]); from test_export_crash import export\n"
            "for version in range(4): export(sys.argv[2], version)")
    command = [sys.executable, '-c', code, str(Path(__file__).parent), str(tmp_path)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    while any(p.poll() is None for p in both): whole(tmp_path/'web'/'acme'); time.sleep(0.05)
    assert [(p.communicate()[1], p.returncode) for p in both] == [('', 0)]*2
    assert whole(tmp_path/'web'/'acme') == export(tmp_path, 3)['export_id']
