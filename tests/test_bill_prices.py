"""Prices from the bill: what a charge shows becomes a price, nothing else does, and a check saves by it."""
import logging
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finops_nb.bill.prices import OPERATIONS, bill_prices, combine_with_bill
from finops_nb.catalog import TABLES, connect
from finops_nb.charges import CHARGES
from finops_nb.checks.aws.ebs_gp2_to_gp3 import EBSGp2Checker
from finops_nb.contracts import RunContext
from finops_nb.prices import KEY, attach, combine, shipped_book, unit_price

DATA = Path(__file__).parent / 'data'
DAY = datetime(2026, 11, 20, 5, tzinfo=UTC)


def charge(usage, usd, operation='', service='AmazonEC2', unit='GB-Mo', **rest):
    "One charge of usage in eu-west-1"
    return dict(charge_category='Usage', pricing_category='Standard', region_id='eu-west-1', billing_currency='USD',
                x_usage_type=f'EU-{usage}', x_operation=operation, x_service_code=service, pricing_unit=unit,
                sku_id=f'{usage} {operation}', list_unit_price=Decimal(usd), charge_period_start=DAY) | rest


def database(charges):
    con = connect()
    con.register('charges', pa.Table.from_pylist(list(charges), schema=CHARGES.schema))
    return con


def book_of(*charges): return bill_prices(database(charges))


def prices_of(book): return {tuple(r[k] for k in KEY): r['list_unit_price'] for r in book.table.to_pylist()}


# --- a bill changes what a check saves ---------------------------------------------------------------------------

def saving(book, size_gib=100):
    "What the gp2 check says about one volume in eu-west-1, at the prices of a book"
    con = connect()
    for name, table in TABLES.items():
        if not name.endswith('_prices') and name != 'instance_types': con.register(name, table.schema.empty_table())
    volume = dict(account_id='111122223333', region='eu-west-1', resource_id='vol-1', volume_type='gp2',
                  size_gib=size_gib)
    con.register('ebs_volumes', pa.Table.from_pylist([volume], schema=TABLES['ebs_volumes'].schema))
    attach(book, con)
    (found,) = EBSGp2Checker().run(RunContext('acme', 'prod', 'r1', DAY, con, {})).to_arrow_table().to_pylist()
    return found['estimated.monthly_savings'], found['estimated.currency']


GP2, GP3 = charge('EBS:VolumeUsage.gp2', '0.13'), charge('EBS:VolumeUsage.gp3', '0.1')


def test_a_check_saves_at_the_prices_of_the_bill():
    assert saving(shipped_book()) == (Decimal('2.2'), 'USD')                      # 100 x (0.11 - 0.088)
    assert saving(combine(shipped_book(), book_of(GP2, GP3))) == (Decimal('3'), 'USD')   # 100 x (0.13 - 0.1)


def test_what_the_bill_does_not_show_comes_from_the_other_book():
    assert saving(combine_with_bill(shipped_book(), book_of(GP2))) == (Decimal('4.2'), 'USD')  # 100 x (0.13 - 0.088)


def test_a_formula_never_mixes_the_currencies_of_two_books():
    yuan = book_of(GP2 | dict(billing_currency='CNY'))
    assert saving(combine_with_bill(shipped_book(), yuan)) == (None, 'CNY')       # no gp3 price in yuan: unknown
    both = book_of(GP2 | dict(billing_currency='CNY'), GP3)                       # the bill itself has two
    assert saving(combine_with_bill(shipped_book(), both)) == (Decimal('2.2'), 'USD')


def test_another_region_of_the_bill_does_not_matter():
    elsewhere = book_of(GP2 | dict(region_id='eu-west-3'), GP3 | dict(region_id='eu-west-3'))
    assert saving(combine_with_bill(shipped_book(), elsewhere)) == (Decimal('2.2'), 'USD')


# --- what becomes a price ----------------------------------------------------------------------------------------

@pytest.mark.parametrize('change', [
    dict(charge_category='Tax'), dict(charge_category='Credit'), dict(charge_category='Purchase'),
    dict(charge_category='Adjustment'), dict(charge_class='Correction'), dict(pricing_category='Dynamic'),
    dict(list_unit_price=None), dict(list_unit_price=Decimal(0)), dict(list_unit_price=Decimal(-1)),
    dict(list_unit_price=Decimal(10) ** 20), dict(x_usage_type=None), dict(x_usage_type='EU-EBS:VolumeUsage.gp9'),
    dict(x_service_code=None), dict(x_service_code='AmazonECS'), dict(pricing_unit='Hrs'), dict(pricing_unit=None),
    dict(region_id=None), dict(region_id='global'), dict(region_id='us-west-2-lax-1'), dict(billing_currency=None),
    dict(x_usage_type='USW2-LAX1-EBS:VolumeUsage.gp2'), dict(charge_period_start=None)], ids=repr)
def test_a_charge_that_shows_no_price_of_a_product_gives_none(change):
    assert book_of(GP2 | change).table.num_rows == 0


@pytest.mark.parametrize('operation, system', [
    ('RunInstances', 'Linux'), ('RunInstances:0002', 'Windows'), ('RunInstances:0010', 'RHEL'),
    ('RunInstances:000g', 'SUSE')])
def test_the_operating_system_is_in_the_operation(operation, system):
    box = charge('BoxUsage:m5.large', '0.2', operation, unit='Hours')
    assert list(prices_of(book_of(box))) == [('AmazonEC2', 'eu-west-1', 'instance', 'm5.large', system)]


@pytest.mark.parametrize('operation', ['RunInstances:0800', 'RunInstances:0006', 'RunInstances:0g00', 'Hourly', None])
def test_an_instance_of_another_platform_gives_no_price(operation):
    assert book_of(charge('BoxUsage:m5.large', '0.2', operation, unit='Hrs')).table.num_rows == 0


def test_an_hour_that_a_commitment_covered_counts_by_its_list_price():
    covered = charge('BoxUsage:m5.large', '0.107', 'RunInstances', unit='Hrs', pricing_category='Committed',
                     commitment_discount_status='Used', effective_cost=Decimal('0.06'), list_cost=Decimal('0.107'))
    assert unit_price(book_of(covered), 'AmazonEC2', 'eu-west-1', 'instance', 'm5.large', 'Linux') == Decimal('0.107')
    assert book_of(covered | dict(list_unit_price=None)).table.num_rows == 0    # not from what was paid


def test_the_book_says_when_and_where_from():
    (row,) = bill_prices(database([GP2, GP2 | dict(charge_period_start=datetime(2026, 11, 2, tzinfo=UTC))]),
                         'bill of acme').table.to_pylist()
    assert (row['effective_date'], row['source'], row['currency']) == (date(2026, 11, 20), 'bill of acme', 'USD')


def test_two_skus_with_two_prices_on_one_day_are_a_contradiction(caplog):
    with caplog.at_level(logging.WARNING, logger='finops_nb'):
        assert book_of(GP2, GP2 | dict(sku_id='OTHER', list_unit_price=Decimal('0.14'))).table.num_rows == 0
    assert 'given twice' in caplog.text


def test_an_empty_bill_is_an_empty_book():
    assert combine(shipped_book(), book_of()).content_hash == shipped_book().content_hash


seen = st.builds(
    lambda usage, usd, day, rate, sku: charge(usage, f'0.{usd}', sku_price_id=rate, sku_id=sku,
                                              charge_period_start=datetime(2026, 10, day, tzinfo=UTC)),
    st.sampled_from(['EBS:VolumeUsage.gp2', 'EBS:VolumeUsage.gp3', 'EBS:SnapshotUsage']), st.integers(1, 9),
    st.integers(1, 28), st.sampled_from([None, 'A', 'B']), st.sampled_from([None, 'S']))


@settings(max_examples=15, deadline=None)
@given(st.data(), st.lists(seen, min_size=1, max_size=12))
def test_the_order_and_the_number_of_charges_do_not_matter(data, charges):
    book = book_of(*charges)
    again = data.draw(st.permutations([*charges, *charges]))
    assert book_of(*again).content_hash == book.content_hash
    shown = {c['list_unit_price'] for c in charges}
    assert set(book.table['list_unit_price'].to_pylist()) <= shown     # a price of the bill, never a mean


# --- real words --------------------------------------------------------------------------------------------------

def listed(pattern):
    "Rows of AWS's eu-west-1 lists of 2023-02 (cycloidio/terracost) whose key matches: key parts, unit, price"
    with connect() as con:
        con.read_parquet(str(DATA / 'prices/aws_prices_snapshot.parquet')).create_view('raw')
        rows = con.execute("""select sku_key, unit, usd, service from raw
            where source like 'cycloidio%' and usd > 0 and regexp_full_match(sku_key, $p)""", {'p': pattern}).fetchall()
    return [(*key.split('|'), unit, Decimal(str(usd)), service) for key, unit, usd, service in rows]


def test_every_real_database_usage_type_names_the_class_aws_says():
    engines = {v: k for k, (a, v) in OPERATIONS.items() if a == 'databaseengine'}
    rows = listed(r'ondemand\|Database Instance\|EU-(InstanceUsage|Multi-AZUsage):.+\|(PostgreSQL|MySQL|MariaDB|Aurora '
                  r'MySQL|Aurora PostgreSQL)\|(Single|Multi)-AZ\|No license required\|from:0')
    assert len(rows) > 300
    charges = [charge(usage.removeprefix('EU-'), usd, engines[engine], 'AmazonRDS', unit)
               for _, _, usage, _, engine, _, _, _, unit, usd, _ in rows]
    ids = {v: k for k, v in {'postgres': 'PostgreSQL', 'mysql': 'MySQL', 'mariadb': 'MariaDB',
                             'aurora-mysql': 'Aurora MySQL', 'aurora-postgresql': 'Aurora PostgreSQL'}.items()}
    expected = {('AmazonRDS', 'eu-west-1', 'rds_instance', cls, f'{ids[engine]}|{zones.lower()}'): usd
                for _, _, _, cls, engine, zones, _, _, _, usd, _ in rows}
    assert prices_of(book_of(*charges)) == expected
    read = [c | dict(x_instance_type=c['x_usage_type'].split(':')[1]) for c in charges]   # as a reader fills it in
    named = [c | dict(x_instance_type=row[3]) for c, row in zip(charges, rows, strict=True)]   # as CUR says it
    assert prices_of(book_of(*read)) == prices_of(book_of(*named)) == expected


@pytest.mark.parametrize('said', [None, 'm6g.large.search', 'm6g.large'])
def test_a_search_node_is_priced_under_its_whole_name(said):
    node = charge('ESInstance:m6g.large', '0.152', 'ESDomain', 'AmazonES', 'Hrs', x_instance_type=said)
    assert [key[3] for key in prices_of(book_of(node))] == ['m6g.large.search']


def test_real_load_balancers_are_told_apart_by_their_operation():
    families = {v: k for k, (a, v) in OPERATIONS.items() if a == 'productfamily'}
    rows = listed(r'ondemand\|Load Balancer.*\|EU-LoadBalancerUsage\|from:0')
    charges = [charge(usage.removeprefix('EU-'), usd, families[family], 'AWSELB', unit)
               for _, family, usage, _, unit, usd, service in rows if service == 'AWSELB']
    kinds = {key[3]: usd for key, usd in prices_of(book_of(*charges)).items()}
    assert kinds == {k: Decimal(v) for k, v in {'application': '0.0252', 'network': '0.0252', 'gateway': '0.014',
                                               'classic': '0.028'}.items()}


def test_a_real_focus_sample_without_usage_types_gives_nothing():
    con = connect()
    con.execute(f"""create view sample as from read_csv('{DATA}/billing/focus_1.0_sample.csv', all_varchar = true,
        nullstr = 'NULL') where ProviderName = 'AWS'""")
    given = dict(charge_category='ChargeCategory', pricing_category='PricingCategory', region_id='RegionId',
                 list_unit_price='ListUnitPrice::decimal(38, 12)', pricing_unit='PricingUnit', sku_id='SkuId',
                 sku_price_id='SkuPriceId', billing_currency='BillingCurrency', charge_class='ChargeClass',
                 charge_period_start='ChargePeriodStart::timestamptz')
    absent = 'x_usage_type', 'x_operation', 'x_service_code', 'x_instance_type'
    columns = ', '.join([*(f'{sql} as {name}' for name, sql in given.items()),
                         *(f'null::varchar as {name}' for name in absent)])
    con.execute(f'create view charges as select {columns} from sample')
    assert con.sql('select count(*) from charges where list_unit_price > 0').fetchall()[0][0] > 200
    assert bill_prices(con).table.num_rows == 0


def test_the_units_of_aws_focus_exports_are_read():
    "`GiB/Second-Months` at 48.7424 and `IOPS-Months` at 0.006 are the FOCUS sample's prices of gp3 in Frankfurt"
    book = book_of(charge('EBS:VolumeP-Throughput.gp3', '48.7424', unit='GiB/Second-Months'),
                   charge('EBS:VolumeP-IOPS.gp3', '0.006', unit='IOPS-Months'),
                   charge('EBS:VolumeUsage.gp3', '0.0952', unit='GB-Months'))
    assert sorted((k[2], p) for k, p in prices_of(book).items()) == [
        ('ebs_iops', Decimal('0.006')), ('ebs_storage', Decimal('0.0952')), ('ebs_throughput', Decimal('0.0476'))]
