"""The bill's readers: every dialect in every spelling gives the same charges; what is no bill is refused clearly."""
import csv
import gzip
import io
import json
import tempfile
from collections import Counter
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finops_nb.bill.cur import RULES, cur_sources
from finops_nb.bill.dialects import charges_sql, duplicates_sql, mapping_table, negations_sql, reading, totals_sql
from finops_nb.bill.formats import NEEDED, cur_column, open_bill
from finops_nb.catalog import connect
from finops_nb.charges import CHARGES, focus_name
from finops_nb.errors import ConfigError

SAMPLES = Path(__file__).parent / 'data' / 'billing'
FOCUS = [focus_name(c) for c in NEEDED['focus']]


def charges(*files):
    "Charges of a bill, in no order, and what its invoice adds up to"
    with connect(threads=2) as con:
        opened = open_bill(con, files)
        with reading(con, opened):
            table = con.sql(charges_sql(opened)).to_arrow_table()
            totals = con.sql(totals_sql(opened)).to_arrow_table().to_pylist()
    assert table.schema == CHARGES.schema
    return table, totals


def rows(table, *columns):
    "Chosen columns as tuples, in an order of their own; maps as sorted pairs, an empty one as null"
    picked = [tuple(tuple(sorted(v)) or None if isinstance(v, list) else v for v in row.values())
              for row in table.select(columns or table.column_names).to_pylist()]
    return sorted(picked, key=repr)


def billed(table): return sum(v for v in table['billed_cost'].to_pylist() if v is not None)


def written(path, headings, lines):
    "A CSV file, gzipped when its name says so; None is an empty field"
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([headings, *lines])
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == '.gz' else data)
    return path


# --- the samples -------------------------------------------------------------------------------------------------

def source_sum(path, column):
    "What a column of a CSV adds up to at twelve places, counted without the readers"
    with gzip.open(path, 'rt') if path.suffix == '.gz' else open(path) as f:
        return sum(Decimal(row[column]).quantize(Decimal('1e-12')) for row in csv.DictReader(f))


@pytest.mark.parametrize('name, column, count', [
    ('focus_1.0_sample.csv', 'BilledCost', 1000),
    ('cur_legacy_sample_focus_converters.csv', 'lineItem/UnblendedCost', 1281),
    ('nise_generated_cur_legacy_2026-10.csv.gz', 'lineItem/UnblendedCost', 2880)])
def test_a_sample_has_every_row_and_its_sum_to_the_last_digit(name, column, count):
    table, totals = charges(SAMPLES / name)
    assert table.num_rows == count
    assert billed(table) == source_sum(SAMPLES / name, column) == sum(t['source_total'] for t in totals)
    assert sum(t['rows'] for t in totals) == count


def test_the_focus_sample_is_read_for_what_it_is():
    table, _ = charges(SAMPLES / 'focus_1.0_sample.csv')
    assert Counter(table['provider_name'].to_pylist()) == {'AWS': 942, 'Microsoft': 51, 'Oracle': 7}
    assert {v.as_py() for v in pa.compute.unique(table['effective_cost'])} & {Decimal(0), Decimal(13)}  # rounded
    assert sum(table['list_cost'].to_pylist()) == source_sum(SAMPLES / 'focus_1.0_sample.csv', 'ListCost')
    assert {type(v) for v in table['tags'].to_pylist()} == {list, type(None)}
    assert table['availability_zone'].null_count > 0 and 'NULL' not in table['availability_zone'].to_pylist()
    assert {f'{t:%Y-%m-%dT%H:%M:%S%z}' for t in table['billing_period_start'].to_pylist()} == {
        '2024-09-01T00:00:00+0000', '2024-10-01T00:00:00+0000'}
    assert table['invoice_id'].null_count == 1000   # came with FOCUS 1.2


def test_the_legacy_samples_have_taxes_tags_and_instances():
    table, _ = charges(SAMPLES / 'cur_legacy_sample_focus_converters.csv')
    assert Counter(table['charge_category'].to_pylist())['Tax'] == 12
    assert table['resource_id'].null_count == table.num_rows   # the sample has no such column
    nise, _ = charges(SAMPLES / 'nise_generated_cur_legacy_2026-10.csv.gz')
    ec2 = nise.filter(pa.compute.equal(nise['x_service_code'], 'AmazonEC2'))
    assert {'m5.large'} <= set(ec2['x_instance_type'].to_pylist()) and ec2['resource_id'].null_count == 0
    assert ('environment', 'dev') in {pair for tags in nise['tags'].to_pylist() for pair in tags}
    assert 'CostCenter' in {key for found in nise['x_cost_categories'].to_pylist() for key, _ in found}


# --- one bill in four spellings -----------------------------------------------------------------------------------

KINDS = ['Usage', 'SavingsPlanCoveredUsage', 'DiscountedUsage', 'RIFee', 'SavingsPlanRecurringFee',
         'SavingsPlanUpfrontFee', 'Fee', 'Tax', 'Credit', 'Refund', 'EdpDiscount', 'BrandNewThing']
LEGACY = {  # CUR 2.0 -> heading of legacy CUR
    'identity_line_item_id': 'identity/LineItemId', 'identity_time_interval': 'identity/TimeInterval',
    'bill_payer_account_id': 'bill/PayerAccountId', 'bill_billing_period_start_date': 'bill/BillingPeriodStartDate',
    'bill_billing_period_end_date': 'bill/BillingPeriodEndDate', 'bill_bill_type': 'bill/BillType',
    'bill_billing_entity': 'bill/BillingEntity', 'bill_invoice_id': 'bill/InvoiceId',
    'line_item_usage_account_id': 'lineItem/UsageAccountId', 'line_item_line_item_type': 'lineItem/LineItemType',
    'line_item_usage_start_date': 'lineItem/UsageStartDate', 'line_item_usage_end_date': 'lineItem/UsageEndDate',
    'line_item_product_code': 'lineItem/ProductCode', 'line_item_usage_type': 'lineItem/UsageType',
    'line_item_operation': 'lineItem/Operation', 'line_item_resource_id': 'lineItem/ResourceId',
    'line_item_usage_amount': 'lineItem/UsageAmount', 'line_item_currency_code': 'lineItem/CurrencyCode',
    'line_item_unblended_cost': 'lineItem/UnblendedCost', 'line_item_unblended_rate': 'lineItem/UnblendedRate',
    'line_item_net_unblended_cost': 'lineItem/NetUnblendedCost', 'line_item_tax_type': 'lineItem/TaxType',
    'line_item_line_item_description': 'lineItem/LineItemDescription',
    'pricing_public_on_demand_cost': 'pricing/publicOnDemandCost', 'pricing_unit': 'pricing/unit',
    'pricing_public_on_demand_rate': 'pricing/publicOnDemandRate', 'pricing_term': 'pricing/term',
    'product_instance_type': 'product/instanceType', 'product_region_code': 'product/regionCode',
    'reservation_reservation_a_r_n': 'reservation/ReservationARN',
    'reservation_effective_cost': 'reservation/EffectiveCost',
    'reservation_unused_recurring_fee': 'reservation/UnusedRecurringFee',
    'reservation_unused_amortized_upfront_fee_for_billing_period':
        'reservation/UnusedAmortizedUpfrontFeeForBillingPeriod',
    'reservation_unused_quantity': 'reservation/UnusedQuantity',
    'savings_plan_savings_plan_a_r_n': 'savingsPlan/SavingsPlanARN',
    'savings_plan_savings_plan_effective_cost': 'savingsPlan/SavingsPlanEffectiveCost',
    'savings_plan_total_commitment_to_date': 'savingsPlan/TotalCommitmentToDate',
    'savings_plan_used_commitment': 'savingsPlan/UsedCommitment',
    'split_line_item_parent_resource_id': 'splitLineItem/ParentResourceId',
    'split_line_item_split_cost': 'splitLineItem/SplitCost',
}
MAPS = {'product': ('product/', lambda k: dict(product_name='ProductName', region='region')[k]),
        'resource_tags': ('resourceTags/', lambda k: k.replace('user_', 'user:', 1)),
        'cost_category': ('costCategory/', str),
        'discount': ('discount/', dict(edp_discount='EdpDiscount').get)}
NUMBERS = {c for c in LEGACY if c.endswith(('_cost', '_amount', '_fee', '_quantity', '_commitment', '_to_date',
                                            '_billing_period'))}
TIMES = {c for c in LEGACY if c.endswith('_date')} - NUMBERS


def line(kind='Usage', cost='1', **rest):
    "A line of CUR 2.0: numbers as text, maps as dicts"
    return dict.fromkeys(LEGACY) | {m: {} for m in MAPS} | dict(
        identity_line_item_id='a', bill_payer_account_id='111122223333', bill_bill_type='Anniversary',
        bill_billing_period_start_date='2026-01-01T00:00:00Z', bill_billing_period_end_date='2026-02-01T00:00:00Z',
        line_item_usage_account_id='012233334444', line_item_usage_start_date='2026-01-05T10:00:00Z',
        line_item_usage_end_date='2026-01-05T11:00:00Z', line_item_product_code='AmazonEC2',
        line_item_currency_code='USD', line_item_line_item_type=kind, line_item_unblended_cost=cost) | rest


def cur2_parquet(folder, lines):
    "As AWS writes CUR 2.0: doubles, timestamps, maps"
    def typed(column, value):
        if value is None: return None
        if column in NUMBERS: return float(value)
        if column in TIMES: return datetime.fromisoformat(value[:-1])
        if column == 'discount': return [(k, float(v)) for k, v in value.items()]
        return [*value.items()] if column in MAPS else value
    text_map, double_map = pa.map_(pa.string(), pa.string()), pa.map_(pa.string(), pa.float64())
    kinds = dict.fromkeys(LEGACY, pa.string()) | dict.fromkeys(NUMBERS, pa.float64()) | dict.fromkeys(
        TIMES, pa.timestamp('ms')) | dict.fromkeys(MAPS, text_map) | dict(discount=double_map)
    columns = {c: pa.array([typed(c, row[c]) for row in lines], kind) for c, kind in kinds.items()}
    pq.write_table(pa.table(columns), folder / 'cur2.parquet')
    return folder / 'cur2.parquet'


def cur2_csv(folder, lines):
    "CUR 2.0 as gzipped CSV, maps as JSON"
    columns = [*LEGACY, *MAPS]
    return written(folder / 'cur2.csv.gz', columns, [
        [json.dumps(row[c]) if c in MAPS else row[c] for c in columns] for row in lines])


def spread(lines, spell):
    "Headings and fields of legacy CUR: a column for each key of the maps"
    keys = [(m, k) for m in MAPS for k in sorted({k for row in lines for k in row[m]})]
    headings = [*LEGACY.values(), *(MAPS[m][0] + MAPS[m][1](k) for m, k in keys)]
    return [spell(h) for h in headings], [[*(row[c] for c in LEGACY), *(row[m].get(k) for m, k in keys)]
                                          for row in lines]


def legacy_csv(folder, lines): return written(folder / 'legacy.csv', *spread(lines, str))


def athena_parquet(folder, lines):
    "Legacy CUR for Athena: columns in snake case; here all of them text"
    headings, fields = spread(lines, cur_column)
    columns = [pa.array(column, pa.string()) for column in zip(*fields, strict=True)]
    pq.write_table(pa.table(columns, names=headings), folder / 'athena.parquet')
    return folder / 'athena.parquet'


SPELLINGS = [cur2_parquet, cur2_csv, legacy_csv, athena_parquet]
money = st.decimals(-999, 999, places=6).map('{:f}'.format)
positive = st.decimals(0, 999, places=6).map('{:f}'.format)
tag_maps = st.dictionaries(st.sampled_from(['user_team', 'user_cost_center', 'aws_created_by']),
                           st.text('abc,"\'{}=: é', min_size=1, max_size=5).filter(lambda v: v.strip()), max_size=3)


@st.composite
def bill_lines(draw):
    "A bill: lines of any type, each covered hour with its negation"
    found = []
    for n in range(draw(st.integers(1, 6))):
        kind, cost = draw(st.sampled_from(KINDS)), draw(money)
        plan, reserved = kind.startswith('SavingsPlan'), kind in ('DiscountedUsage', 'RIFee') or draw(st.booleans())
        committed, used = draw(positive), draw(positive)
        row = line(
            kind, cost, identity_line_item_id=f'id{n}', line_item_usage_amount=draw(positive),
            line_item_resource_id=draw(st.sampled_from(['i-0a1b2c3d', None])), pricing_unit='Hrs',
            product_region_code=draw(st.sampled_from([None, 'eu-west-1'])),
            pricing_public_on_demand_cost=draw(st.none() | positive),
            line_item_net_unblended_cost=draw(st.none() | money) if kind == 'Usage' else cost,
            line_item_tax_type=draw(st.sampled_from([None, 'VAT'])) if kind in ('Tax', 'Refund') else None,
            product=draw(st.sampled_from([{}, dict(product_name='Amazon EC2', region='eu-west-1')])),
            resource_tags=draw(tag_maps), cost_category=draw(st.sampled_from([{}, {'team': 'a'}])),
            discount=draw(st.sampled_from([{}, {'edp_discount': '-0.1'}])))
        if plan: row |= dict(savings_plan_savings_plan_a_r_n='arn:sp', savings_plan_savings_plan_effective_cost=used,
                             savings_plan_total_commitment_to_date=committed, savings_plan_used_commitment=used)
        elif reserved and kind != 'Usage': row |= dict(
            reservation_reservation_a_r_n='arn:ri', reservation_effective_cost=used, reservation_unused_quantity='2',
            reservation_unused_recurring_fee=draw(positive),
            reservation_unused_amortized_upfront_fee_for_billing_period=draw(st.none() | positive))
        found.append(row)
        if kind == 'SavingsPlanCoveredUsage':
            back = f'{-Decimal(cost):f}'
            found.append(row | dict(line_item_line_item_type='SavingsPlanNegation', identity_line_item_id=f'neg{n}',
                                    line_item_unblended_cost=back, line_item_net_unblended_cost=back))
    return found


@settings(max_examples=15, deadline=None)
@given(bill_lines())
@example([line('RIFee', '0', reservation_reservation_a_r_n='arn:ri', reservation_unused_recurring_fee='0.000001')])
def test_a_bill_has_the_same_charges_in_every_spelling_and_adds_up(lines):
    with tempfile.TemporaryDirectory() as tmp:
        results = [charges(write(Path(tmp), lines)) for write in SPELLINGS]
    first, totals = results[0]
    for other, others in results[1:]:
        assert rows(other) == rows(first)
        assert sorted(map(repr, others)) == sorted(map(repr, totals))
    unused = [row for row in first.to_pylist() if row['commitment_discount_status'] == 'Unused']
    assert {row['billed_cost'] for row in unused} <= {0}   # no line of the source, so no category of its sums
    by_category = Counter()
    for row in first.to_pylist():
        if row['commitment_discount_status'] != 'Unused': by_category[row['charge_category']] += row['billed_cost']
    assert {t['charge_category']: t['source_total'] for t in totals} == {**by_category}
    negations = sum(row['line_item_line_item_type'] == 'SavingsPlanNegation' for row in lines)
    assert first.num_rows == len(lines) - negations + len(unused)


@settings(max_examples=15, deadline=None)
@given(st.sets(st.sampled_from(sorted({*LEGACY, *MAPS} - {*NEEDED['cur']}))))
def test_any_optional_column_can_be_left_out(left_out):
    lines = [line('Usage', '0.25', resource_tags={'user_team': 'web'}), line('Tax', '0.05')]
    with tempfile.TemporaryDirectory() as tmp:
        whole = pq.read_table(cur2_parquet(Path(tmp), lines))
        pq.write_table(whole.drop_columns([*left_out]), Path(tmp) / 'part.parquet')
        table, totals = charges(Path(tmp) / 'part.parquet')
    assert billed(table) == Decimal('0.3') == sum(t['source_total'] for t in totals)
    assert rows(table, 'charge_category', 'sub_account_id') == [('Tax', '012233334444'), ('Usage', '012233334444')]


def test_net_amounts_count_and_the_discount_lines_beside_them_do_not(tmp_path):
    lines = [line('Usage', '10', line_item_net_unblended_cost='9'), line('EdpDiscount', '-1')]
    table, totals = charges(cur2_parquet(tmp_path, lines))
    assert billed(table) == 9 == sum(t['source_total'] for t in totals)
    gross = pq.read_table(tmp_path / 'cur2.parquet').drop_columns(['line_item_net_unblended_cost'])
    pq.write_table(gross, tmp_path / 'gross.parquet')
    table, totals = charges(tmp_path / 'gross.parquet')
    assert billed(table) == 10 - 1 == sum(t['source_total'] for t in totals)


def test_a_negation_that_does_not_cancel_shows_as_a_difference_and_in_the_negations(tmp_path):
    lines = [line('SavingsPlanCoveredUsage', '0.107'), line('SavingsPlanNegation', '-0.100')]
    path = cur2_parquet(tmp_path, lines)
    table, totals = charges(path)
    assert sum(t['source_total'] for t in totals) - billed(table) == Decimal('0.007')
    with connect() as con:
        assert con.sql(negations_sql(open_bill(con, [path]))).fetchall() == [(1, Decimal('-0.1'), Decimal('0.107'))]


def test_a_split_line_adds_nothing_to_the_bill(tmp_path):
    pod = line('Usage', '0', line_item_resource_id='arn:pod', split_line_item_parent_resource_id='i-0a1b2c3d',
               split_line_item_split_cost='0.03', pricing_public_on_demand_cost='0.05')
    table, _ = charges(cur2_parquet(tmp_path, [line('Usage', '0.107', line_item_resource_id='i-0a1b2c3d'), pod]))
    assert rows(table, 'resource_id', 'billed_cost', 'effective_cost', 'list_cost', 'x_split_cost') == [
        ('arn:pod', 0, 0, 0, Decimal('0.03')), ('i-0a1b2c3d', *[Decimal('0.107')]*3, None)]


def test_negative_and_zero_lines_are_charges(tmp_path):
    table, _ = charges(legacy_csv(tmp_path, [line('Usage', '0'), line('Usage', '-0.5'), line('Credit', '-2')]))
    assert rows(table, 'charge_category', 'billed_cost', 'effective_cost') == [
        ('Credit', -2, -2), ('Usage', Decimal('-0.5'), Decimal('-0.5')), ('Usage', 0, 0)]


@pytest.mark.parametrize('write', SPELLINGS)
def test_a_line_with_two_hundred_long_tags_is_read_whole(write, tmp_path):
    tags = {f'user_{n:03}_' + 'k'*118: 'ä'*256 for n in range(200)}
    table, _ = charges(write(tmp_path, [line(resource_tags=tags)]))
    assert dict(table['tags'][0].as_py()) == {k.removeprefix('user_'): v for k, v in tags.items()}


def test_tags_that_differ_in_case_only_stay_apart(tmp_path):
    tags = {'user_Name': 'a', 'user_name': 'b', 'user_NAME': 'c'}
    table, _ = charges(legacy_csv(tmp_path, [line(resource_tags=tags)]))
    assert dict(table['tags'][0].as_py()) == {'Name': 'a', 'name': 'b', 'NAME': 'c'}


@pytest.mark.parametrize('refund, category, effective', [
    (dict(), 'Usage', -5), (dict(line_item_tax_type='VAT'), 'Tax', -5),
    (dict(line_item_product_code='ComputeSavingsPlans'), 'Purchase', 0)])
def test_a_refund_is_of_the_category_it_gives_back(refund, category, effective, tmp_path):
    table, totals = charges(cur2_parquet(tmp_path, [line('Refund', '-5', **refund)]))
    assert rows(table, 'charge_category', 'charge_class', 'billed_cost', 'effective_cost') == [
        (category, 'Correction', -5, effective)]
    assert totals[0]['charge_category'] == category


@pytest.mark.parametrize('code, usage, category', [
    ('AmazonEC2', 'EU-BoxUsage:m5.large', 'Compute'), ('AmazonEC2', 'EU-EBS:VolumeUsage.gp3', 'Storage'),
    ('AmazonEC2', 'EU-NatGateway-Hours', 'Compute'), ('AWSELB', 'LoadBalancerUsage', 'Networking'),
    ('awskms', 'KMS-Keys', 'Identity'), ('AWSSupportBusiness', None, 'Other')])   # as in FOCUS's sample of AWS's export
def test_a_service_has_the_category_aws_gives_it(code, usage, category, tmp_path):
    path = cur2_parquet(tmp_path, [line(line_item_product_code=code, line_item_usage_type=usage)])
    assert charges(path)[0]['service_category'].to_pylist() == [category]


def test_maps_may_be_null_and_tags_may_come_under_prefixes(tmp_path):
    table = pq.read_table(cur2_parquet(tmp_path, [line()])).drop_columns([*MAPS])
    kind = pa.map_(pa.string(), pa.string())
    for name in MAPS: table = table.append_column(name, pa.array([None], kind))
    pq.write_table(table, tmp_path / 'null.parquet')
    empty = charges(tmp_path / 'null.parquet')[0]
    assert rows(empty, 'tags', 'x_discounts', 'x_cost_categories', 'service_name') == [(None, None, None, 'AmazonEC2')]
    tags = [('resourceTags/user_team', 'web'), ('accountTag/team', 'shop'), ('costCategory/unit', 'retail')]
    table = table.drop_columns(['resource_tags', 'cost_category']).append_column('tags', pa.array([tags], kind))
    pq.write_table(table, tmp_path / 'tags.parquet')
    assert rows(charges(tmp_path / 'tags.parquet')[0], 'tags', 'x_cost_categories') == [
        ((('accountTag/team', 'shop'), ('team', 'web')), (('unit', 'retail'),))]


def test_a_bundled_discount_joins_the_others(tmp_path):
    table = pq.read_table(cur2_parquet(tmp_path, [line(discount={'edp_discount': '-0.1'})]*2))
    pq.write_table(table.append_column('discount_bundled_discount', pa.array([0., -.25])), tmp_path / 'bundled.parquet')
    edp, bundled = ('edp_discount', Decimal('-0.1')), ('bundled_discount', Decimal('-0.25'))
    assert rows(charges(tmp_path / 'bundled.parquet')[0], 'x_discounts') == [((bundled, edp),), ((edp,),)]


def test_lines_that_are_there_twice_are_counted_and_kept(tmp_path):
    one = line('Usage', '0.107', identity_time_interval='2026-01-05T10:00:00Z/2026-01-05T11:00:00Z')
    later = one | dict(identity_time_interval='2026-01-05T11:00:00Z/2026-01-05T12:00:00Z')
    path = legacy_csv(tmp_path, [one, later, one])
    assert billed(charges(path)[0]) == Decimal('0.321')
    with connect() as con:
        assert con.sql(duplicates_sql(open_bill(con, [path]))).fetchall() == [(1, Decimal('0.107'))]
        assert con.sql(duplicates_sql(open_bill(con, [path, path]))).fetchall() == [(4, Decimal('0.428'))]  # of 6


def test_a_plan_with_discounted_fees_has_a_cheaper_unused_part(tmp_path):
    fee = line('SavingsPlanRecurringFee', '1', line_item_net_unblended_cost='0.9',
               savings_plan_savings_plan_a_r_n='arn:sp', savings_plan_total_commitment_to_date='1',
               savings_plan_used_commitment='0.8')
    table = pq.read_table(cur2_parquet(tmp_path, [fee]))
    for name, value in [('recurring_commitment', 1.0), ('amortized_upfront_commitment', 0.0),
                        ('net_recurring_commitment', 0.9), ('net_amortized_upfront_commitment', 0.0)]:
        table = table.append_column(f'savings_plan_{name}_for_billing_period', pa.array([value]))
    pq.write_table(table, tmp_path / 'net.parquet')
    found, _ = charges(tmp_path / 'net.parquet')
    assert rows(found, 'charge_category', 'billed_cost', 'effective_cost') == [
        ('Purchase', Decimal('0.9'), 0), ('Usage', 0, Decimal('0.18'))]   # 0.9 x (1 - 0.8)


# --- several files, several types ------------------------------------------------------------------------------------

def test_files_with_other_optional_columns_are_one_bill(tmp_path):
    one = cur2_parquet(tmp_path, [line('Usage', '1', resource_tags={'user_team': 'web'})])
    few = {c: line('Usage', '2')[c] for c in NEEDED['cur']}
    two = written(tmp_path / 'few.csv', [*few, 'product'], [[*few.values(), '{"product_name": "Amazon EC2"}']])
    table, totals = charges(one, two)
    assert rows(table, 'billed_cost', 'service_name') == [(1, 'AmazonEC2'), (2, 'Amazon EC2')]
    assert [dict(t, rows=t['rows']) for t in totals] == [dict(
        billing_period='2026-01', billing_account_id='111122223333', currency='USD', charge_category='Usage', rows=2,
        source_total=Decimal(3))]


def test_column_types_do_not_matter(tmp_path):
    few = {c: line('Usage', '0.25')[c] for c in NEEDED['cur']}
    start = datetime(2026, 1, 5, 10)
    typed = few | dict(
        bill_payer_account_id=111122223333, line_item_usage_account_id=12233334444, line_item_usage_start_date=start,
        line_item_unblended_cost=Decimal('0.25'), bill_billing_period_start_date=datetime(2026, 1, 1).date())
    schema = pa.schema([('line_item_usage_start_date', pa.timestamp('ns', 'Europe/Berlin'))])
    table = pa.Table.from_pylist([typed])
    table = table.set_column(table.column_names.index('line_item_usage_start_date'), schema.field(0),
                             pa.array([start]).cast(schema.field(0).type))
    pq.write_table(table, tmp_path / 'typed.parquet')
    assert rows(charges(tmp_path / 'typed.parquet')[0]) == rows(
        charges(written(tmp_path / 'text.csv', few, [few.values()]))[0])


def focus_line(**changed):
    return dict.fromkeys(FOCUS, '1') | dict(
        ChargeCategory='Usage', ChargePeriodStart='2026-01-05T10:00:00Z', ChargePeriodEnd='2026-01-05T11:00:00Z',
        BillingPeriodStart='2026-01-01T00:00:00Z', BillingCurrency='USD', SubAccountId='222233334444') | changed


def test_focus_1_2_as_aws_exports_it_and_as_athena_lowers_it(tmp_path):
    row = focus_line(InvoiceId='42', SkuMeter='EUW1-BoxUsage:m5.large', x_ServiceCode='AmazonEC2',
                     x_Operation='RunInstances', x_Discounts='{"edp_discount": -0.1}',
                     SkuPriceDetails='{"InstanceType": "m5.large"}',
                     Tags='{"resourceTags/user:team": "web", "costCategory/unit": "shop"}')
    plain, _ = charges(written(tmp_path / 'aws.csv', row, [row.values()]))
    as_map = {k: [[*json.loads(row[k]).items()]] for k in ('Tags', 'x_Discounts', 'SkuPriceDetails')}
    kinds = dict(Tags=pa.string(), x_Discounts=pa.float64(), SkuPriceDetails=pa.string())
    lowered = {k.lower(): pa.array(as_map[k], pa.map_(pa.string(), kinds[k])) if k in as_map else pa.array(
        [float(v) if k.endswith('Cost') else v]) for k, v in row.items()}
    pq.write_table(pa.table(lowered), tmp_path / 'athena.parquet')
    athena, _ = charges(tmp_path / 'athena.parquet')
    assert rows(athena) == rows(plain)
    found = plain.to_pylist()[0]
    assert [found[k] for k in ('x_usage_type', 'x_instance_type', 'x_service_code', 'invoice_id')] == [
        'EUW1-BoxUsage:m5.large', 'm5.large', 'AmazonEC2', '42']
    assert (found['tags'], found['x_cost_categories'], found['x_discounts']) == (
        [('team', 'web')], [('unit', 'shop')], [('edp_discount', Decimal('-0.1'))])


def test_the_version_of_focus_is_told_by_its_columns(tmp_path):
    def version(*more):
        with connect() as con:
            path = written(tmp_path / 'f.csv', [*FOCUS, *more], [[*focus_line().values(), *more]])
            return open_bill(con, [path]).format
    assert [version(), version('SkuMeter'), version('SkuMeter', 'InvoiceId')] == ['focus-1.0', 'focus-1.1', 'focus-1.2']


def test_null_may_be_spelled_four_ways(tmp_path):
    path = tmp_path / 'nulls.csv'
    head, values = [*FOCUS, 'ResourceId'], [*focus_line().values()]
    path.write_text('\n'.join([','.join(head), *(','.join([*values, n]) for n in ('NULL', 'null', '', '""', 'r-1'))]))
    assert charges(path)[0]['resource_id'].to_pylist() == [None]*4 + ['r-1']


def test_gzip_is_known_by_its_bytes_and_lines_may_end_in_any_way(tmp_path):
    row = focus_line(ResourceId='a\nb')
    plain = written(tmp_path / 'a.csv', row, [row.values()])
    named = tmp_path / 'export-00001'
    dos = plain.read_bytes().replace(b'\n', b'\r\n').replace(b'a\r\nb', b'a\nb')
    named.write_bytes(gzip.compress(b'\xef\xbb\xbf' + dos))
    assert rows(charges(named)[0]) == rows(charges(plain)[0])
    assert charges(plain)[0]['resource_id'].to_pylist() == ['a\nb']


def test_the_projection_streams(tmp_path):
    with connect() as con:
        for path in (cur2_parquet(tmp_path, [line()]), SAMPLES / 'focus_1.0_sample.csv'):
            plan = con.sql('explain ' + charges_sql(open_bill(con, [path]))).fetchall()[0][1]
            assert not [word for word in ('WINDOW', 'ORDER', 'GROUP', 'JOIN') if word in plan]


# --- what is no bill ------------------------------------------------------------------------------------------------

GOOD = [FOCUS, [*focus_line().values()]]


def refused(path, content, *others):
    "The message with which a file is refused, whether by its head or while it is read"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as e: charges(path, *others)
    return str(e.value)


def as_csv(*lines, sep=','): return '\n'.join(sep.join(map(str, row)) for row in lines) + '\n'


def with_value(column, value): return as_csv(*GOOD, [*focus_line(**{column: value}).values()])


@pytest.mark.parametrize('content, message', [
    ('', 'x.csv is empty. Download it again'),
    (as_csv(*GOOD, sep=';'), 'x.csv has 1 column (BilledCost;EffectiveCost;'),
    (as_csv(*GOOD, sep=';'), 'its fields are separated by semicolons. Export it with commas.'),
    (as_csv(*GOOD, sep='\t'), 'its fields are separated by tabs'),
    (as_csv(*GOOD, sep='|'), 'its fields are separated by bars'),
    ('date,shop,total\n1,2,3\n', 'x.csv has 3 columns (date, shop, total), none of a bill.'),
    (as_csv(FOCUS[1:], GOOD[1][1:]), 'it looks like FOCUS but lacks BilledCost. Add this column to the export.'),
    (as_csv([*NEEDED['cur']][:7], range(7)),
     'but lacks line_item_product_code, line_item_currency_code. Add these columns'),
    (as_csv([*FOCUS, 'billedcost'], [*GOOD[1], 2]), 'x.csv has the column BilledCost twice. Remove one of them.'),
    (b'PK\x03\x04...', 'x.csv is a ZIP archive. Unpack it'),
    (b'\xff\xfe\x00\x01', 'x.csv is neither Parquet nor UTF-8 text'),
    (with_value('BilledCost', '12 50'), "x.csv: BilledCost is '12 50', which is no number. Correct it"),
    (with_value('EffectiveCost', 'NaN'), "x.csv: EffectiveCost is 'NaN', which is no number"),
    (with_value('ChargePeriodStart', '1/5/2026'), "x.csv: ChargePeriodStart is '1/5/2026', which is no time"),
    (with_value('BillingPeriodStart', '2026-13-01'), "x.csv: BillingPeriodStart is '2026-13-01', which is no time"),
    (as_csv([*FOCUS, 'Tags'], [*GOOD[1], '{oops']), "x.csv: Tags is '{oops', which is no JSON object"),
    (as_csv(*GOOD, ['1', '1']), 'x.csv, line 3: Expected Number of Columns: 9 Found: 2. Is the file cut or edited?'),
    (as_csv(*GOOD) + '"1,1', 'x.csv, line 3: '),
    (gzip.compress(as_csv(*GOOD*2000).encode())[:-20], 'x.csv can not be read to its end'),
    (gzip.compress(as_csv(*GOOD).encode())[:12], 'x.csv can not be read to its end'),
])
def test_what_is_no_bill_is_refused_with_what_is_wrong(content, message, tmp_path):
    assert message in refused(tmp_path / 'x.csv', content)


def test_half_a_parquet_file_is_refused(tmp_path):
    whole = cur2_parquet(tmp_path, [line(identity_line_item_id=str(n)) for n in range(5000)]).read_bytes()
    assert 'half.parquet can not be read to its end' in refused(tmp_path / 'half.parquet', whole[:len(whole)//2])
    damaged = whole[:200] + b'\0'*400 + whole[600:]
    assert 'can not be read to its end' in refused(tmp_path / 'damaged.parquet', damaged)


def test_files_of_two_dialects_are_refused(tmp_path):
    legacy, cur2 = legacy_csv(tmp_path, [line()]), cur2_parquet(tmp_path, [line()])
    said = refused(tmp_path / 'x.csv', as_csv(*GOOD), legacy)
    assert 'x.csv is focus and legacy.csv is cur-legacy: two exports, whose sum would be twice the bill.' in said
    with pytest.raises(ConfigError, match='legacy.csv is cur-legacy and cur2.parquet is cur-2.0'): charges(legacy, cur2)


def test_a_value_in_a_double_column_that_is_no_number_is_named(tmp_path):
    table = pq.read_table(cur2_parquet(tmp_path, [line()]))
    at = table.column_names.index('line_item_unblended_cost')
    pq.write_table(table.set_column(at, 'line_item_unblended_cost', pa.array([float('nan')])), tmp_path / 'nan.parquet')
    with pytest.raises(ConfigError, match="nan.parquet: line_item_unblended_cost is 'nan', which is no number"):
        charges(tmp_path / 'nan.parquet')


def test_a_long_value_is_cut_in_the_message(tmp_path):
    said = refused(tmp_path / 'x.csv', with_value('BilledCost', 'secret'*100))
    assert len(said) < 200 and 'secret'*7 not in said


def test_errors_that_are_not_the_bills_pass(tmp_path):
    with connect() as con:
        opened = open_bill(con, [cur2_parquet(tmp_path, [line()])])
        with pytest.raises(duckdb.IOException), reading(con, opened):
            con.execute(f"copy ({charges_sql(opened)}) to '{tmp_path}/missing/x.parquet' (format parquet)")


# --- documentation ---------------------------------------------------------------------------------------------------

def test_the_mapping_names_only_columns_of_cur_2_and_all_of_charges():
    with open(SAMPLES / 'aws_data_exports_select_columns.csv') as f:
        known = {r['column'] for r in csv.DictReader(f) if r['export_table'] == 'COST_AND_USAGE_REPORT'}
    newer = {'capacity_reservation_capacity_reservation_a_r_n', 'capacity_reservation_capacity_reservation_status'}
    legacy = {'product_servicename'}
    assert {c for rule in RULES.values() for c in cur_sources(rule)} - known <= newer | legacy
    assert [row.split('`')[1] for row in mapping_table().splitlines()[2:]] == [c.name for c in CHARGES.columns]
