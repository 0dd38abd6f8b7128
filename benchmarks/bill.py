"""Loading a bill against copying it: one table, `python benchmarks/bill.py --rows 10000000`.

Every line runs in a process of its own: wall clock, CPU seconds (user + system, all threads) and peak resident memory.
The limit is what DuckDB needs to read the same columns and write them again, with the same two threads:

copy    COPY (SELECT * FROM read_parquet(files)) TO one file (FORMAT parquet), DuckDB's defaults otherwise
load    `load_bill` of the same files: hashed, read, mapped to `charges`, written, read back and reconciled
again   the same once more: recognised by its hashes
attach  the view `charges` over it, and the cost of each account and service

The bill is invented: CUR 2.0 in Parquet, a file per million rows, 64 columns (COLUMNS), those that the readers
use of usage, Savings Plans and reservations and what else is usually filled; the maps `product`, `resource_tags`,
`cost_category` and `discount` have 12, 4, 1 and 1 entries. Ids are as random as those of AWS. Of seven lines one
is covered by a Savings Plan, one is its negation, one is reserved, four are on demand; a thousandth are fees."""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
from core import peak_mb, reset_peak

from finops_nb.catalog import connect

COLUMNS = """
    'Anniversary' as bill_bill_type, 'AWS' as bill_billing_entity,
    timestamp '2026-10-01' as bill_billing_period_start_date,
    timestamp '2026-11-01' as bill_billing_period_end_date, 'EUINIE26-123456' as bill_invoice_id,
    'Amazon Web Services EMEA SARL' as bill_invoicing_entity, '111122223333' as bill_payer_account_id,
    'payer' as bill_payer_account_name, map {'unit': 'unit-' || i % 7} as cost_category,
    map {'edp_discount': -0.03 * cost} as discount, 0.0::double as discount_bundled_discount,
    -0.03 * cost as discount_total_discount, md5(i::varchar) || md5((i + 1)::varchar)[:20] as identity_line_item_id,
    strftime(t, '%Y-%m-%dT%H:%M:%SZ/') || strftime(t + interval 1 hour, '%Y-%m-%dT%H:%M:%SZ') as identity_time_interval,
    'eu-west-1' || chr(97 + (i % 3)::int) as line_item_availability_zone, cost as line_item_blended_cost,
    '0.107' as line_item_blended_rate, 'USD' as line_item_currency_code,
    'Amazon Web Services EMEA SARL' as line_item_legal_entity,
    '$0.107 per On Demand Linux ' || kind || ' Instance Hour' as line_item_line_item_description,
    line_type as line_item_line_item_type, 0.97 * cost as line_item_net_unblended_cost,
    '0.10379' as line_item_net_unblended_rate, 4.0::double as line_item_normalization_factor,
    4.0::double as line_item_normalized_usage_amount, 'RunInstances' as line_item_operation,
    (['AmazonS3', 'AmazonRDS', 'AmazonCloudWatch', 'AmazonEC2', 'AmazonEC2'])[1 + i % 5] as line_item_product_code,
    'i-0' || md5((i // 720)::varchar)[:16] as line_item_resource_id, '' as line_item_tax_type,
    cost as line_item_unblended_cost, '0.107' as line_item_unblended_rate,
    '22223333' || lpad((i // 720 % 40)::varchar, 4, '0') as line_item_usage_account_id,
    'account ' || i // 720 % 40 as line_item_usage_account_name, (i % 1000) * 0.001::double as line_item_usage_amount,
    t + interval 1 hour as line_item_usage_end_date, t as line_item_usage_start_date,
    'EU-BoxUsage:' || kind as line_item_usage_type, 'USD' as pricing_currency,
    1.1 * cost as pricing_public_on_demand_cost, '0.1070000000' as pricing_public_on_demand_rate,
    'SKU' || i % 500 || '.JRTCKXETXF.6YS6EN2CT7' as pricing_rate_code, (i % 500)::varchar as pricing_rate_id,
    'OnDemand' as pricing_term, 'Hrs' as pricing_unit,
    map(['product_name', 'region', 'instance_type_family', 'operating_system', 'tenancy', 'physical_processor',
         'memory', 'vcpu', 'storage', 'network_performance', 'license_model', 'group'],
        ['Amazon Elastic Compute Cloud', 'eu-west-1', kind, 'Linux', 'Shared', 'Intel Xeon', '8 GiB', '2', 'EBS only',
         'Up to 10 Gigabit', 'No License required', 'g' || i % 9]) as product,
    'General purpose' as product_instance_family, kind as product_instance_type, 'EU (Ireland)' as product_location,
    'AWS Region' as product_location_type, 'RunInstances' as product_operation,
    'Compute Instance' as product_product_family,
    'eu-west-1' as product_region_code, 'AmazonEC2' as product_servicecode, 'SKU' || i % 500 as product_sku,
    'EU-BoxUsage:' || kind as product_usagetype,
    if(line_type = 'DiscountedUsage', 0.6 * cost, 0) as reservation_effective_cost,
    if(line_type in ('DiscountedUsage', 'RIFee'), 'arn:aws:ec2:eu-west-1:111122223333:reserved-instances/abc', '')
        as reservation_reservation_a_r_n,
    0.0::double as reservation_unused_amortized_upfront_fee_for_billing_period,
    if(line_type = 'RIFee', 0.2 * cost, 0) as reservation_unused_recurring_fee,
    map(['user_team', 'user_cost_center', 'user_environment', 'user_name'],
        ['team-' || i // 720 % 9, 'cc' || i // 720 % 50, 'prod', 'web-' || i // 720]) as resource_tags,
    if(line_type like 'SavingsPlan%', 'arn:aws:savingsplans::111122223333:savingsplan/abc', '')
        as savings_plan_savings_plan_a_r_n,
    if(line_type = 'SavingsPlanCoveredUsage', 0.7 * cost, 0) as savings_plan_savings_plan_effective_cost,
    if(line_type = 'SavingsPlanRecurringFee', 1.0, 0)::double as savings_plan_total_commitment_to_date,
    if(line_type = 'SavingsPlanRecurringFee', 0.8, 0)::double as savings_plan_used_commitment"""

LINES = """
    select i, timestamp '2026-10-01' + to_hours((i % 720)::int) as t, (['m5.large', 'c5.xlarge', 'r6g.large',
               't3.medium'])[1 + i // 720 % 4] as kind,
           if(line_type = 'SavingsPlanNegation', -1, 1) * (i // 7 * 7919 % 100000) * 0.00001::double as cost, line_type
    from (select i, case i % 7 when 0 then 'SavingsPlanCoveredUsage' when 1 then 'SavingsPlanNegation'
            when 2 then 'DiscountedUsage' when 3 then case i // 7 % 286 when 0 then 'SavingsPlanRecurringFee'
            when 1 then 'RIFee' else 'Usage' end else 'Usage' end as line_type from range(FIRST, LAST) r(i))"""

CHUNK = 7 * 142_858   # rows a file: a million, and no usage without its negation


def make(folder, rows):
    "The bill as files"
    with connect(2) as con:
        for n, first in enumerate(range(0, rows, CHUNK)):
            lines = LINES.replace('FIRST', str(first)).replace('LAST', str(min(rows, first + CHUNK)))
            con.execute(f"""copy (select {COLUMNS} from ({lines})) to '{folder}/bill-{n:05}.snappy.parquet'
                            (format parquet, compression snappy)""")


def job_copy(bill, out):
    with connect(2) as con:
        con.execute(f"copy (select * from read_parquet('{bill}/*.parquet')) to '{out}/copy.parquet' (format parquet)")


def job_load(bill, out):
    from finops_nb.bill.load import load_bill

    [m] = load_bill(bill, out, 'acme')
    assert not m['unchanged'] and not m['mismatches'], m


def job_again(bill, out):
    from finops_nb.bill.load import load_bill

    [m] = load_bill(bill, out, 'acme')
    assert m['unchanged']


def job_attach(bill, out):
    from finops_nb.bill.store import attach_charges, open_charges

    with connect(2, 1000) as con:
        attach_charges(con, open_charges(out, 'acme'))
        con.sql('select sub_account_id, service_name, sum(effective_cost) from charges group by all').fetchall()


def child(job, bill, out):
    __import__('finops_nb.bill.load')
    reset_peak()  # a child begins with the peak of its parent
    cpu, wall = time.process_time(), time.perf_counter()
    globals()[f'job_{job}'](bill, out)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(json.dumps(dict(cpu=cpu, wall=wall, rss=peak_mb())))


def measure(job, bill, out):
    command = [sys.executable, __file__, '--job', job, bill, out]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def size_mb(folder):
    return sum(p.stat().st_size for p in Path(folder).rglob('*.parquet')) / 1e6


def main(rows, jobs):
    machine = platform.machine(), f'{os.cpu_count()} cores', f'Python {platform.python_version()}'
    print(', '.join([*machine, f'DuckDB {duckdb.__version__}']))
    with tempfile.TemporaryDirectory() as d:
        bill, copied, loaded = (str(Path(d) / name) for name in ('bill', 'copied', 'loaded'))
        for folder in (bill, copied, loaded):
            os.mkdir(folder)
        make(bill, rows)
        names = len(connect().sql(f"from read_parquet('{bill}/*.parquet') limit 0").columns)
        print(f'{rows:,} lines of CUR 2.0, {names} columns, {size_mb(bill):,.0f} MB')
        print('\n| way | wall s | rows per s | CPU s | times the copy (CPU) | peak RSS MB |')
        print('|---|---:|---:|---:|---:|---:|')
        limit = None
        for job in jobs:
            r = measure(job, bill, copied if job == 'copy' else loaded)
            limit = r['cpu'] if job == 'copy' else limit
            times = f'{r["cpu"] / limit:.2f}' if limit else ''
            cells = job, f'{r["wall"]:.1f}', f'{rows / r["wall"]:,.0f}', f'{r["cpu"]:.1f}', times, f'{r["rss"]:,.0f}'
            print(f'| {" | ".join(cells)} |', flush=True)
        print(f'\ncopy {size_mb(copied):,.0f} MB, charges {size_mb(loaded):,.0f} MB')


JOBS = 'copy', 'load', 'again', 'attach'

if __name__ == '__main__':
    if sys.argv[1:2] == ['--job']:
        child(*sys.argv[2:])
    else:
        options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        options.add_argument('--rows', type=int, default=1_000_000)
        options.add_argument('jobs', nargs='*', default=JOBS)
        asked = options.parse_args()
        main(asked.rows, asked.jobs or JOBS)
