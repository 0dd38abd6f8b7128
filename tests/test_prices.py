"""The price book: the shipped files are what the sources make, a book is a value, AWS's own lists load."""
import csv
import gzip
import json
import random
from collections import Counter, defaultdict
from datetime import date
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finops_nb import price_list, prices, shipped_prices
from finops_nb.catalog import TABLES
from finops_nb.errors import ContractError
from finops_nb.prices import KEY, PRODUCTS, PriceBook, combine, freeze, open_book, unit_price

RAW = Path(__file__).parent / 'data' / 'prices'
SHIPPED = Path(prices.DATA)


# --- what is shipped ---------------------------------------------------------------------------------------------

def shipped(sql):
    "Rows of a query over the shipped book"
    with duckdb.connect() as con:
        con.register('shipped', prices.shipped_book().table)
        return con.execute(sql).fetchall()


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp('built')
    shipped_prices.rebuild(RAW, folder)
    return folder


def test_the_shipped_prices_are_what_the_raw_sources_make(built):
    assert open_book(built / 'prices.parquet').content_hash == prices.shipped_book().content_hash


def test_the_shipped_instance_types_are_what_the_raw_list_makes(built):
    assert pq.read_table(built / 'instance_types.parquet').equals(prices.shipped_instance_types())


def test_the_shipped_files_stay_small():
    assert sum((SHIPPED / name).stat().st_size for name in ('prices.parquet', 'instance_types.parquet')) < 2_000_000


def test_every_shipped_price_names_its_source_with_a_licence():
    sources = prices.shipped_book().table['source'].unique().to_pylist()
    without = [s for s in sources if not any(f'({licence}' in s for licence in ('MIT', 'Apache-2.0', 'CC-BY-4.0'))]
    assert [s.split(':')[0] for s in without] == ['AWS announcement of 2023-07-28']


def test_every_shipped_price_has_the_few_decimals_of_a_published_price():
    """0.0225068493 is a rounded month divided by 730 hours, not a price; AWS publishes at most six decimals,
    except for throughput: it rounds the price of a GiB/s, of which a MiB/s is the 1024th part"""
    noisy = shipped("""select product, variant, region, list_unit_price from shipped
                       where list_unit_price <> round(list_unit_price, 6) and product <> 'ebs_throughput'""")
    assert noisy == []


def test_a_bigger_size_of_a_type_never_costs_less():
    "A price under the wrong key would break the ladder large < xlarge < 2xlarge < 4xlarge somewhere"
    broken = shipped("""
        with sized as (
            select region, option, split_part(variant, '.', 1) as family, list_unit_price as usd,
                   list_position(['large', 'xlarge', '2xlarge', '4xlarge'], variant[len(family) + 2:]) as step
            from shipped where product = 'instance' and step > 0)
        select * from sized a join sized b using (region, option, family) where a.step < b.step and a.usd > b.usd""")
    assert broken == []


@pytest.mark.parametrize('view', sorted({p.table for p in PRODUCTS.values() if p.table} | {'instance_types'}))
def test_the_attached_tables_are_the_catalogs(view):
    con = duckdb.connect()
    prices.attach(prices.shipped_book(), con)
    table = con.sql(f'from {view}').to_arrow_table()
    assert table.schema.equals(TABLES[view].schema) and table.num_rows > 0
    measures = {'unit', 'list_unit_price', 'currency', 'effective_date'}
    key = ['instance_type'] if view == 'instance_types' else [c for c in table.column_names if c not in measures]
    keys = [tuple(row[c] for c in key) for row in table.to_pylist()]
    assert len(keys) == len(set(keys))   # a join never multiplies a resource


# --- a book is a value -------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=('Cs', 'Cc')), max_size=6)
amounts = st.decimals(0, 99_999_999, places=10, allow_nan=False, allow_infinity=False)
days = st.dates(date(2020, 1, 1), date(2020, 1, 4))


@st.composite
def price_rows(draw):
    "Rows over few keys, so that the same key comes up often; some with texts nobody expects"
    product = draw(st.sampled_from(['instance', 'nat_gateway_hour', 'rds_storage']))
    return dict(service=PRODUCTS[product].service, unit=PRODUCTS[product].unit, product=product,
                region=draw(st.sampled_from(['eu-west-1', 'us-gov-west-1'])),
                variant=draw(st.sampled_from(['', 'm5.large']) | texts), option=draw(st.sampled_from(['', 'Linux'])),
                list_unit_price=draw(st.sampled_from([Decimal('0.1'), Decimal('0.2')]) | amounts),
                currency=draw(st.sampled_from(['USD', 'USD', 'CNY'])), effective_date=draw(days), source=draw(texts))


def table(rows): return pa.Table.from_pylist(rows, schema=prices.SCHEMA)


row_lists = st.lists(price_rows(), max_size=12)
books = row_lists.map(lambda rows: PriceBook(table(rows)))


def one_by_one(rows):
    "The specification in plain Python: key -> (price, currency, day, source); a contradiction has none"
    by_key = defaultdict(list)
    for row in rows: by_key[tuple(row[k] for k in KEY)].append(row)
    found = {}
    for key, same in by_key.items():
        newest = [r for r in same if r['effective_date'] == max(r['effective_date'] for r in same)]
        if len({(r['list_unit_price'], r['currency']) for r in newest}) == 1:
            found[key] = (newest[0]['list_unit_price'], newest[0]['currency'], newest[0]['effective_date'],
                          min((r['source'] for r in newest), key=str.encode))
    return found


def as_dict(book):
    return {tuple(r[k] for k in KEY): (r['list_unit_price'], r['currency'], r['effective_date'], r['source'])
            for r in book.table.to_pylist()}


@settings(max_examples=15, deadline=None)
@given(row_lists)
def test_a_book_holds_the_newest_price_of_each_key_and_no_contradiction(rows):
    assert as_dict(PriceBook(table(rows))) == one_by_one(rows)


@settings(max_examples=15, deadline=None)
@given(row_lists, st.randoms(use_true_random=False))
def test_the_content_hash_does_not_depend_on_the_order(rows, chance):
    shuffled = list(rows)
    chance.shuffle(shuffled)
    assert PriceBook(table(rows)).content_hash == PriceBook(table(shuffled)).content_hash


@settings(max_examples=15, deadline=None)
@given(books, books)
def test_books_with_different_content_have_different_hashes(a, b):
    assert (a.content_hash == b.content_hash) == (a.table.to_pylist() == b.table.to_pylist())


@settings(max_examples=6, deadline=None)
@given(books, books, books)
def test_combining_is_associative_idempotent_and_the_later_book_wins(a, b, c):
    flat = combine(a, b, c).content_hash
    assert combine(a, combine(b, c)).content_hash == flat == combine(combine(a, b), c).content_hash
    assert combine(a, a).content_hash == a.content_hash == combine(a).content_hash
    assert combine(combine(), a, combine()).content_hash == a.content_hash
    assert as_dict(combine(a, b)) == as_dict(a) | as_dict(b)


@settings(max_examples=15, deadline=None)
@given(row_lists, st.randoms(use_true_random=False))
def test_a_frozen_book_comes_back_exact_and_the_same_prices_are_the_same_bytes(tmp_path_factory, rows, chance):
    folder = tmp_path_factory.mktemp('frozen')
    book = PriceBook(table(rows))
    assert open_book(freeze(book, folder / 'a.parquet')).table.equals(book.table)
    chance.shuffle(rows)
    assert freeze(PriceBook(table(rows)), folder / 'b.parquet').read_bytes() == (folder / 'a.parquet').read_bytes()


@settings(max_examples=15, deadline=None)
@given(books, st.sampled_from(['NONE', 'SNAPPY', 'GZIP']), st.integers(1, 5), st.booleans())
def test_the_content_hash_does_not_depend_on_the_encoding(tmp_path_factory, book, compression, group, dictionary):
    path = tmp_path_factory.mktemp('encoded') / 'book.parquet'
    pq.write_table(book.table, path, compression=compression, row_group_size=group, use_dictionary=dictionary)
    assert open_book(path).content_hash == book.content_hash


@settings(max_examples=15, deadline=None)
@given(books)
def test_looking_up_finds_exactly_what_the_book_holds(book):
    for row in book.table.to_pylist():
        assert unit_price(book, *(row[k] for k in KEY)) == row['list_unit_price']
        assert unit_price(book, row['service'], 'eu-west-3', *(row[k] for k in KEY[2:])) is None


def test_damage_anywhere_in_a_frozen_book_is_noticed(tmp_path):
    book = PriceBook(prices.shipped_book().table.slice(20_000, 500))
    path = freeze(book, tmp_path / 'book.parquet')
    whole = path.read_bytes()
    chance = random.Random(7)
    for _ in range(60):
        at = chance.randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << chance.randrange(8))]) + whole[at + 1:])
        try: found = open_book(path).content_hash
        except ContractError: continue
        assert found == book.content_hash   # the bit was padding or statistics


# --- AWS's own lists ---------------------------------------------------------------------------------------------

def real_offers():
    "The eu-west-1 price list of 2023-02-23 as terracost recorded it, each row as the offer it was"
    raw = pq.read_table(RAW / 'aws_prices_snapshot.parquet').to_pylist()
    for n, row in enumerate(r for r in raw if r['source'].startswith('cycloidio/terracost')):
        parts, service = row['sku_key'].split('|')[1:], row['service']
        about = dict.fromkeys(price_list.OFFER.names, '') | dict(
            sku=f'SKU{n}', offertermcode='JRTCKXETXF', effectivedate='2023-02-23', startingrange='0', unit=row['unit'],
            priceperunit=f"{row['usd']:.10f}", currency='USD', servicecode=service, locationtype='AWS Region',
            regioncode='' if row['region'] == 'global' else row['region'])
        if parts[-1] == 'shared':
            kind, system, software, licence, _ = parts
            yield about | dict(productfamily='Compute Instance', usagetype=f'EU-BoxUsage:{kind}', tenancy='Shared',
                               instancetype=kind, operatingsystem=system, preinstalledsw=software, licensemodel=licence)
            continue
        *parts, begin = parts
        family, usage, *rest = parts if len(parts) > 1 else ['', *parts]
        about |= dict(productfamily=family, usagetype=usage, startingrange=begin.removeprefix('from:'))
        if 'Outpost' in usage or 'outpost' in usage: about['locationtype'] = 'AWS Outposts'
        if service == 'AmazonRDS' and rest:
            if family == 'Database Instance': about['instancetype'], *rest = rest
            about |= dict(databaseengine=rest[0], licensemodel=rest[-1])
            if len(rest) > 1 and not rest[1].startswith(('Single', 'Multi')): about['databaseedition'] = rest[1]
        if family == 'Cache Instance': about |= dict(instancetype=rest[0], cacheengine=rest[1])
        yield about


@pytest.fixture(scope='module')
def real_csv(tmp_path_factory):
    "Those offers as a bulk CSV, with AWS's spelling of the headings and columns nobody asked for"
    headings = dict(
        sku='SKU', offertermcode='OfferTermCode', effectivedate='EffectiveDate', startingrange='StartingRange',
        unit='Unit', priceperunit='PricePerUnit', currency='Currency', servicecode='serviceCode',
        productfamily='Product Family',
        regioncode='Region Code', location='Location', locationtype='Location Type', usagetype='usageType',
        instancetype='Instance Type', operatingsystem='Operating System', tenancy='Tenancy',
        preinstalledsw='Pre Installed S/W', licensemodel='License Model', databaseengine='Database Engine',
        databaseedition='Database Edition', cacheengine='Cache Engine')
    path = tmp_path_factory.mktemp('offers') / 'index.csv'
    with open(path, 'w', newline='', encoding='utf-8') as f:
        out = csv.writer(f, quoting=csv.QUOTE_ALL)
        out.writerows([['FormatVersion', 'v1.0'], ['Disclaimer', 'It says, "as is".'],
                       ['Publication Date', '2023-02-23T00:00:00Z'], ['Version', '20230223000000'],
                       ['OfferCode', 'all of them'], [*headings.values(), 'Physical Processor']])
        out.writerows([*(offer[name] for name in headings), 'Intel, "Xeon"'] for offer in real_offers())
    return path


def test_a_real_price_list_loads_under_the_keys_of_the_shipped_book(real_csv):
    loaded, shipped = as_dict(price_list.read_price_list(real_csv)), as_dict(prices.shipped_book())
    assert {key[1] for key in loaded} == {'eu-west-1'}
    common = loaded.keys() & shipped.keys()
    assert [key for key in common if loaded[key][0] != shipped[key][0]] == []
    per_product = Counter(key[2] for key in common)
    assert per_product['instance'] > 1500 and per_product['rds_instance'] > 300
    assert per_product['elasticache_node'] > 100 and per_product['rds_storage'] == 8 and per_product['ebs_storage'] == 9
    flat = {f'{product} {variant}'.strip(): str(price.normalize())
            for (_, _, product, variant, _), (price, *_) in loaded.items()
            if PRODUCTS[product].table == 'unit_prices' or product == 'ebs_throughput'}
    assert flat == {'nat_gateway_hour': '0.048', 'nat_gateway_gb': '0.048',
                    'log_storage': '0.03', 'log_ingestion': '0.57',
                    'load_balancer_hour application': '0.0252', 'load_balancer_hour network': '0.0252',
                    'load_balancer_hour gateway': '0.014', 'load_balancer_hour classic': '0.028',
                    'ebs_throughput gp3': '0.044', 'rds_backup_storage': '0.095'}   # 45.056 per GiB/s / 1024


def test_licences_editions_and_mirrors_keep_their_own_price(real_csv):
    book = price_list.read_price_list(real_csv)
    def rds(option): return unit_price(book, 'AmazonRDS', 'eu-west-1', 'rds_instance', 'db.m5.large', option)
    assert rds('sqlserver-se|single-az') == Decimal('0.996')    # not RDS Custom (1.2508), not Outposts (0.889)
    assert rds('sqlserver-se|multi-az') == Decimal('1.992')     # AWS calls it MirrorUsage
    assert rds('oracle-se2|single-az') == Decimal('0.491')      # licence included; bringing one's own costs 0.189
    assert rds('oracle-ee|single-az') is None                   # only sold without a licence
    assert rds('postgres|single-az') == Decimal('0.197') and rds('postgres|multi-az') == Decimal('0.394')
    def ec2(option): return unit_price(book, 'AmazonEC2', 'eu-west-1', 'instance', 'm5.large', option)
    assert ec2('Linux') == Decimal('0.107') and ec2('SUSE') == Decimal('0.163')
    assert ec2('Windows') == Decimal('0.199')   # not with SQL Server (0.679), not without licence (0.107)


def test_the_same_list_as_bulk_json_and_as_get_products_replies_is_the_same_book(real_csv, tmp_path):
    json_names = dict(regioncode='regionCode', locationtype='locationType', instancetype='instanceType',
                      operatingsystem='operatingSystem', preinstalledsw='preInstalledSw', licensemodel='licenseModel',
                      databaseengine='databaseEngine', databaseedition='databaseEdition', cacheengine='cacheEngine')
    products, terms = {}, {}
    for o in real_offers():
        attributes = {json_names.get(a, a): o[a] for a in price_list.ATTRIBUTES if o[a] and a != 'productfamily'}
        products[o['sku']] = dict(sku=o['sku'], productFamily=o['productfamily'], attributes=attributes)
        price = dict(unit=o['unit'], beginRange=o['startingrange'], pricePerUnit={'USD': o['priceperunit']})
        terms[o['sku']] = {'only': dict(offerTermCode='JRTCKXETXF', effectiveDate='2023-02-23T00:00:00Z',
                                        priceDimensions={'only': price})}
    file = dict(formatVersion='v1.0', offerCode='all', version='1', products=products, terms={'OnDemand': terms})
    bulk = tmp_path / 'index.json.gz'
    bulk.write_bytes(gzip.compress(json.dumps(file).encode()))
    items = [json.dumps(dict(product=product, terms={'OnDemand': terms[sku]})) for sku, product in products.items()]
    saved = tmp_path / 'reply.json'
    saved.write_text(json.dumps({'FormatVersion': 'aws_v1', 'PriceList': items}))
    def without_source(book): return {key: value[:3] for key, value in as_dict(book).items()}
    expected = without_source(price_list.read_price_list(real_csv))
    assert without_source(price_list.read_price_list(bulk)) == expected
    assert without_source(price_list.read_price_list(saved)) == expected
    assert without_source(price_list.from_products(items)) == expected


@pytest.mark.parametrize('name', sorted(p.name for p in (RAW / 'samples').iterdir()))
def test_a_sample_cut_anywhere_is_refused_or_loses_whole_lines_only(name, tmp_path):
    whole = (RAW / 'samples' / name).read_bytes()
    full = as_dict(price_list.read_price_list(RAW / 'samples' / name))
    refused = 0
    for at in range(1, len(whole.rstrip()), 37):
        path = tmp_path / name
        path.write_bytes(whole[:at])
        try: found = as_dict(price_list.read_price_list(path))
        except ContractError as e:
            assert name in str(e)
            refused += 1
        else: assert found.items() <= full.items()   # nothing that is read is wrong
    assert refused > 100 if name.endswith('.csv') else refused > 30


@pytest.mark.parametrize('content', [
    b'', b'\x00\xff' * 50, b'PAR1', b'[1, 2]', b'["{}"]', b'{"offers": {}}', b'"FormatVersion","v1.0"\n' * 6,
    b'{"products": [], "terms": {"savingsPlan": []}}', b'<html>Access denied</html>'])
def test_what_is_no_price_list_is_refused_and_never_quoted(content, tmp_path):
    path = tmp_path / 'list.bin'
    path.write_bytes(content)
    with pytest.raises(ContractError, match='list.bin|Entry 0') as e: price_list.read_price_list(path)
    assert 'Access denied' not in str(e.value)


def test_a_list_without_a_product_of_ours_is_an_empty_book(tmp_path):
    path = tmp_path / 'sns.json'
    path.write_text(json.dumps(dict(offerCode='AmazonSNS', version='1', terms={}, products={})))
    assert price_list.read_price_list(path).table.num_rows == 0
