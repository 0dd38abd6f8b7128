"""Findings meet the bill: 10M charges of 1M resources, 100k findings. `python benchmarks/attribution.py`.

Every line runs in a process of its own: CPU seconds (user + system, all threads), wall seconds, peak resident memory.

scan      the same columns of the charges read and summed in one total: what no join can avoid
prepare   charges summed by resource, day and tag (`attribution.prepare`), once a run
fill      `actual`, `estimated` and `severity` of the findings filled in (`actual_cost.with_actual`), in batches
evidence  one row per finding and slice of charges, written as Parquet"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from finops_nb.actual_cost import with_actual
from finops_nb.attribution import prepare
from finops_nb.bill.coverage import evidence
from finops_nb.billed_ids import COLLECTED, attach_collected
from finops_nb.catalog import TABLES, connect
from finops_nb.charges import CHARGES
from finops_nb.files import exact_literal
from finops_nb.inventory import SQL_TYPES
from finops_nb.storage_cast import iter_storage

AS_OF = datetime(2026, 11, 24, 6, tzinfo=UTC)
MADE = dict(
    sub_account_id="'1111222233' || lpad((i % 10)::varchar, 2, '0')",
    resource_id="'vol-0' || md5((i % RESOURCES)::varchar)[:16]",
    charge_category="'Usage'",
    billing_currency="'USD'",
    service_name="'Amazon Elastic Compute Cloud'",
    x_service_code="'AmazonEC2'",
    x_usage_type="(['EBS:VolumeUsage.gp3', 'EBS:VolumeP-IOPS.gp3', 'DataTransfer-Out-Bytes'])[1 + i % 3]",
    billing_period_start="timestamptz '2026-11-01' - to_months((i // RESOURCES % 2)::int)",
    charge_period_start="timestamptz '2026-11-23' - to_days((i // RESOURCES % 50)::int)",
    charge_period_end="timestamptz '2026-11-24' - to_days((i // RESOURCES % 50)::int)",
    commitment_discount_status="if(i % 7 = 0, 'Used', null)",
    commitment_discount_id="if(i % 7 = 0, 'sp-' || (i % 5), null)",
) | dict.fromkeys(('billed_cost', 'effective_cost', 'contracted_cost', 'list_cost'), '(i % 1000) / 700')


def make_charges(path, rows, resources):
    columns = ', '.join(
        f'({MADE.get(c.name, "null").replace("RESOURCES", str(resources))})::{SQL_TYPES[c.type]} as {c.name}'
        for c in CHARGES.columns
    )
    connect().sql(f'select {columns} from range({rows}) t(i)').to_parquet(str(path), compression='zstd')


def finding_rows(findings):
    return f"""select 'aws.ebs.volume_unattached' as check_id, 'usage_optimization' as category, 'fail' as status,
        'aws' as "scope.cloud", '1111222233' || lpad((i % 10)::varchar, 2, '0') as "scope.account_id",
        'eu-west-1' as "scope.region", 'AmazonEC2' as "scope.service", 'ebs_volume' as "scope.resource_type",
        'vol-0' || md5(i::varchar)[:16] as "scope.resource_id", 'low' as "severity.level",
        10::decimal(18, 6) as "estimated.monthly_savings", 20::decimal(18, 6) as "estimated.monthly_cost",
        'list' as "estimated.basis", 'USD' as "estimated.currency", 60 as "estimated.confidence"
        from range({findings}) t(i)"""


RUN = dict(tenant_id='acme', workspace_id='prod', run_id='bench', run_ts='2026-11-24T06:00:00Z') | {
    'source.schema_version': 1
}


def child(step, folder, findings):
    con = connect(threads=2)
    for name in COLLECTED:
        con.register(name, TABLES[name].schema.empty_table())
    attach_collected(con)
    con.execute(f'create view charges as from read_parquet({exact_literal(folder / "charges.parquet")})')
    stored = [s.table for s in iter_storage(connect().sql(finding_rows(findings)), 'lenient', RUN, None)]
    bill = prepare(con, AS_OF) if step in ('fill', 'evidence') else None
    filled = [with_actual(bill, t) for t in stored] if step == 'evidence' else []
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    if step == 'scan':
        con.sql("""select sum(effective_cost), sum(contracted_cost), sum(list_cost), count(distinct x_usage_type),
            max(resource_id), max(sub_account_id), max(charge_period_start), max(commitment_discount_status)
            from charges""").to_arrow_table()
    if step == 'prepare':
        prepare(con, AS_OF)
    if step == 'fill':
        filled = [with_actual(bill, t) for t in stored]
        assert all(t['actual'].to_pylist()[0]['attribution']['method'] == 'exact_resource_id' for t in filled)
    if step == 'evidence':
        con.register('findings', pa.concat_tables(filled))
        evidence(con, bill.windows).to_parquet(str(folder / 'evidence.parquet'))
        assert pq.read_metadata(folder / 'evidence.parquet').num_rows >= findings
    after, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - start
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps(dict(cpu=cpu, wall=wall, peak_gb=after.ru_maxrss / 1e6)))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--charges', type=int, default=10_000_000)
    p.add_argument('--resources', type=int, default=1_000_000)
    p.add_argument('--findings', type=int, default=100_000)
    p.add_argument('--step', help=argparse.SUPPRESS)
    p.add_argument('--folder', type=Path, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.step:
        child(a.step, a.folder, a.findings)
        return
    with tempfile.TemporaryDirectory() as d:
        make_charges(Path(d) / 'charges.parquet', a.charges, a.resources)
        size = (Path(d) / 'charges.parquet').stat().st_size / 1e6
        cores, version = os.cpu_count(), platform.python_version()
        print(f'{a.charges:,} charges ({size:.0f} MB), {a.findings:,} findings, {cores} cores, Python {version}\n')
        print('| step | CPU s | wall s | peak RSS GB |\n|---|---|---|---|')
        for step in ('scan', 'prepare', 'fill', 'evidence'):
            args = [sys.executable, __file__, '--step', step, '--folder', d, '--findings', str(a.findings)]
            done = subprocess.run(args, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            r = json.loads(done.stdout.splitlines()[-1])
            print(f'| {step} | {r["cpu"]:.2f} | {r["wall"]:.2f} | {r["peak_gb"]:.2f} |', flush=True)


if __name__ == '__main__':
    main()
