"""The core against the limit of this machine: one table, `python benchmarks/core.py`.

Every line runs in a process of its own: CPU seconds (user + system, all threads) and peak resident memory. The limit is
what no implementation can avoid, measured in the same run: `pq.write_table` of the same typed rows with the same
compression, plus one sha256 of the same canonical bytes per fingerprint and per finding id.

limit   see above
arrow   typed draft columns, as checks yield them -> validated, identified, cast, written
text    the same columns, every leaf as text
checks  the same from the query itself, its SQL included, as a run does it
dicts   the same records as Python dicts
export  the stored findings -> flat Parquet, findings.json, summary.json, top_savings.json, each with its gzip"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from finops_nb.catalog import connect
from finops_nb.schema import FINOPS_FINDINGS_SCHEMA
from finops_nb.storage_cast import iter_storage
from finops_nb.wire import BATCH_ROWS
from finops_nb.writer import PARQUET, FindingsParquetWriter, ParquetWriterConfig

RUN = dict(
    tenant_id='acme',
    workspace_id='prod',
    run_id='20261124T060000Z-prod-bench000',
    run_ts='2026-11-24T06:00:00Z',
    engine_name='finops_nb',
    engine_version='0.1.0',
    rulepack_version='0.1.0',
    ingested_ts='2026-11-24T06:00:00Z',
) | {'source.source_type': 'checker', 'source.schema_version': 1}

# What 12 checks hand over: constants per check, ids and texts per row, decimals, evidence maps, tags, an issue key on
# every third row.
VOLUME = "'vol-0' || md5(i::varchar)[:16]"
DRAFTS = f"""
    select 'aws.check.n' || (i % 12) as check_id, 'Name of check ' || (i % 12) as check_name,
           (['usage_optimization', 'rate_optimization'])[1 + i % 2] as category, 'idle' as sub_category,
           'fail' as status, 'aws' as "scope.cloud",
           lpad((111122223333 + i % 12)::varchar, 12, '0') as "scope.account_id",
           (['eu-west-1', 'us-east-1', 'eu-central-1', 'ap-south-1'])[1 + i % 4] as "scope.region",
           'AmazonEC2' as "scope.service", 'ebs_volume' as "scope.resource_type", {VOLUME} as "scope.resource_id",
           'arn:aws:ec2:eu-west-1:111122223333:volume/' || {VOLUME} as "scope.resource_arn",
           (['low', 'medium', 'high'])[1 + i % 3] as "severity.level", NUMBER(i % 1000) as "severity.score",
           {VOLUME} || ': change ' || (i % 900) || ' GiB gp2 to gp3' as title,
           'gp2 volume of ' || (i % 900) || ' GiB that gp3 matches for less, attached to i-0'
               || md5((i + 7)::varchar)[:16] as message,
           'Change the volume type; no downtime.' as recommendation,
           'aws ec2 modify-volume --volume-type gp3 --volume-id ' || {VOLUME} as remediation,
           MONEY((i % 90000) / 100.0) as "estimated.monthly_savings",
           MONEY((i % 90000) / 50.0) as "estimated.monthly_cost", NUMBER(90) as "estimated.confidence",
           'list' as "estimated.basis", 'USD' as "estimated.currency",
           'monthly saving = size_gib * (gp2_price - gp3_price) = ' || (i % 900) || ' * (0.11 - 0.088)'
               as "estimated.notes",
           'open' as "lifecycle.status",
           map(['Name', 'CostCenter', 'Environment'], ['vol-' || (i % 5000), 'cc-' || (i % 40), 'prod']) as tags,
           map(['state', 'volume_type'], ['in-use', 'gp2']) as dimensions,
           map(['size_gib', 'gp2_price', 'gp3_price'], [MONEY(i % 900), MONEY(0.11), MONEY(0.088)]) as metrics,
           case when i % 3 = 0 then map(['target'], ['gp3']) end as issue_key
    from range(ROWS) t(i)"""


def drafts(rows, typed):
    "Draft columns as a SQL check yields them (typed), or all as text"
    con = connect(threads=1)
    text = '' if typed else '::varchar'
    con.execute(f'create macro MONEY(x) as x::decimal(18,6){text}; create macro NUMBER(x) as x::int{text}')
    return con, con.sql(DRAFTS.replace('ROWS', str(rows)))


def table_in(d, rows, typed):
    path = Path(d) / f'drafts-{rows}-{typed}.arrow'
    if not path.exists():
        _con, query = drafts(rows, typed)
        reader = query.to_arrow_reader(BATCH_ROWS)
        with pa.OSFile(str(path), 'wb') as f, pa.ipc.new_file(f, reader.schema) as w:
            for b in reader:
                w.write_batch(b)
    return pa.memory_map(str(path))


def batches_of(file):
    r = pa.ipc.open_file(file)
    return pa.RecordBatchReader.from_batches(r.schema, (r.get_batch(i) for i in range(r.num_record_batches)))


def job_limit(d, rows):
    "pq.write_table of the typed rows + two sha256 per row"
    typed = [s.table for s in iter_storage(batches_of(table_in(d, rows, True)), run=RUN)]
    canonical = [b'x' * 240] * BATCH_ROWS
    yield
    with pq.ParquetWriter(Path(d) / 'limit.parquet', FINOPS_FINDINGS_SCHEMA, **PARQUET) as w:
        for t in typed:
            w.write_table(t, row_group_size=BATCH_ROWS)
    for t in typed:
        for c in canonical[: len(t)]:
            sha256(c).digest()
        for c in canonical[: len(t)]:
            sha256(c[:190]).digest()


def job_arrow(d, rows, typed=True):
    file = table_in(d, rows, typed)
    yield
    write(d, batches_of(file))


def job_checks(d, rows):
    _con, query = drafts(rows, True)
    yield
    write(d, query)


def job_text(d, rows):
    return job_arrow(d, rows, False)


def write(d, source):
    w = FindingsParquetWriter(ParquetWriterConfig(Path(d) / 'finops_findings', run=RUN))
    w.extend(source)
    stats = w.close()
    assert stats['rejected'] == 0, stats


def job_dicts(d, rows):
    records = []
    for b in batches_of(table_in(d, rows, True)):
        for r in b.to_pylist(maps_as_pydicts='strict'):
            records.append(nested(r))
    yield
    write(d, records)


def nested(r):
    res = {}
    for k, v in r.items():
        *parents, leaf = k.split('.')
        node = res
        for p in parents:
            node = node.setdefault(p, {})
        node[leaf] = v
    return res


def job_export(d, rows):
    from finops_nb.export_json import ExportConfig, run_export

    subprocess.run(
        [sys.executable, __file__, '--job', 'arrow', str(rows), d], check=True, capture_output=True
    )  # in a process of its own
    yield
    run_export(
        ExportConfig(str(Path(d) / 'finops_findings' / '**' / '*.parquet'), 'acme', str(Path(d) / 'webapp_data'))
    )


def child(job, rows, d):
    steps = globals()[f'job_{job}'](d, rows)
    next(steps)
    reset_peak()
    cpu, wall = time.process_time(), time.perf_counter()
    next(steps, None)
    print(json.dumps(dict(cpu=time.process_time() - cpu, wall=time.perf_counter() - wall, rss=peak_mb())))


def reset_peak():
    try:
        Path('/proc/self/clear_refs').write_text('5')
    except OSError:
        pass


def peak_mb():
    try:
        return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(job, rows, d):
    out = subprocess.run(
        [sys.executable, __file__, '--job', job, str(rows), d], check=True, capture_output=True, text=True
    )
    return json.loads(out.stdout.splitlines()[-1])


def main(sizes, jobs):
    print(f'{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, pyarrow {pa.__version__}')
    print('\n| findings | way | CPU s | findings per CPU s | times the limit | peak RSS MB |')
    print('|---:|---|---:|---:|---:|---:|')
    for rows in sizes:
        limit = None
        for job in jobs:
            with tempfile.TemporaryDirectory() as d:
                r = measure(job, rows, d)
            limit = r['cpu'] if job == 'limit' else limit
            times = f'{r["cpu"] / limit:.2f}' if limit else ''
            cells = f'{rows:,}', job, f'{r["cpu"]:.2f}', f'{rows / r["cpu"]:,.0f}', times, f'{r["rss"]:,.0f}'
            print(f'| {" | ".join(cells)} |', flush=True)


JOBS = 'limit', 'arrow', 'text', 'checks', 'dicts', 'export'

if __name__ == '__main__':
    if sys.argv[1:2] == ['--job']:
        child(sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        sizes = [int(a) for a in sys.argv[1:] if a.isdigit()]
        main(sizes or [10_000, 100_000, 1_000_000], [a for a in sys.argv[1:] if not a.isdigit()] or JOBS)
