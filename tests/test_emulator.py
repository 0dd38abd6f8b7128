"""The emulated AWS seen from outside: boto3 clients over HTTP, and our own collectors on the demo's estate."""
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from finops_nb import estate, settings
from finops_nb.collect.snapshot import collect_snapshot
from finops_nb.demo import NAMED_REGIONS, _apply, demo_settings, emulated_environment, emulated_estate
from finops_nb.emulator import Fault, emulated_aws

ROOT = Path(__file__).parents[1]
ROLE = 'arn:aws:iam::111122223333:role/FinopsReader'
SESSION = boto3.Session('testing', 'testing')
ACCOUNT_IDS = {a['account']: a['account_id'] for a in estate.ACCOUNTS}


def client(url, service, region='eu-west-1', attempts=1, **keys):
    config = Config(retries=dict(mode='standard', total_max_attempts=attempts))
    return SESSION.client(service, region, endpoint_url=url, config=config, **keys)


def assumed(url, role=ROLE, **kwargs):
    key = client(url, 'sts').assume_role(RoleArn=role, RoleSessionName='test', **kwargs)['Credentials']
    return dict(aws_access_key_id=key['AccessKeyId'], aws_secret_access_key=key['SecretAccessKey'],
                aws_session_token=key['SessionToken'])


def error_code(call, **kwargs):
    with pytest.raises(ClientError) as caught: call(**kwargs)
    return caught.value.response['Error']['Code']


# one call of each wire format the product speaks
CALLS = [('ec2', 'DescribeVolumes', 'describe_volumes', 'UnauthorizedOperation'),
         ('rds', 'DescribeDBInstances', 'describe_db_instances', 'AccessDenied'),
         ('elb', 'DescribeLoadBalancers', 'describe_load_balancers', 'AccessDenied'),
         ('elbv2', 'DescribeLoadBalancers', 'describe_load_balancers', 'AccessDenied'),
         ('sts', 'GetCallerIdentity', 'get_caller_identity', 'AccessDenied'),
         ('logs', 'DescribeLogGroups', 'describe_log_groups', 'AccessDeniedException'),
         ('cloudwatch', 'ListMetrics', 'list_metrics', 'AccessDenied'),
         ('s3', 'ListBuckets', 'list_buckets', 'AccessDenied')]


def test_each_service_refuses_in_its_own_words():
    faults = [Fault(service=service, operation=operation, code=code) for service, operation, _, code in CALLS]
    with emulated_aws(faults) as url:
        found = [error_code(getattr(client(url, service), method)) for service, _, method, _ in CALLS]
    assert found == [code for *_, code in CALLS]


def test_a_refusal_concerns_only_the_call_it_names():
    "The same operation of the other load balancer API, another region and another account still answer"
    fault = Fault('111122223333', 'eu-west-1', 'elb', 'DescribeLoadBalancers', 'AccessDenied')
    with emulated_aws([fault]) as url:
        keys = assumed(url)
        assert error_code(client(url, 'elb', **keys).describe_load_balancers) == 'AccessDenied'
        assert client(url, 'elbv2', **keys).describe_load_balancers()['LoadBalancers'] == []
        assert client(url, 'elb', 'us-east-1', **keys).describe_load_balancers()['LoadBalancerDescriptions'] == []
        assert client(url, 'elb').describe_load_balancers()['LoadBalancerDescriptions'] == []


def test_a_region_that_is_off_accepts_no_credentials():
    with emulated_aws() as url:
        codes = {service: error_code(getattr(client(url, service, 'ap-east-1'), method))
                 for service, _, method, _ in CALLS if service not in ('sts', 's3')}
        never_named = error_code(client(url, 'ec2', 'sa-east-1').describe_volumes)
        known = client(url, 'ec2').describe_regions(AllRegions=True)['Regions']
    assert codes == dict(
        ec2='AuthFailure', rds='InvalidClientTokenId', elb='InvalidClientTokenId', elbv2='InvalidClientTokenId',
        logs='UnrecognizedClientException', cloudwatch='UnrecognizedClientException')
    assert never_named == 'AuthFailure'
    assert {r['RegionName']: r['OptInStatus'] for r in known}['ap-east-1'] == 'not-opted-in'


def test_throttling_ends_after_the_calls_it_counts():
    "Five refusals for eight callers at once: three get through at the first attempt, never more"
    with emulated_aws([Fault(service='logs', code='ThrottlingException', times=5)]) as url:
        logs = client(url, 'logs')
        def ask(_):
            try: return len(logs.describe_log_groups()['logGroups'])
            except ClientError as e: return e.response['Error']['Code']
        with ThreadPoolExecutor(8) as pool: answers = list(pool.map(ask, range(8)))
    assert sorted(map(str, answers)) == ['0']*3 + ['ThrottlingException']*5


def test_boto3_retries_a_throttled_call():
    with emulated_aws([Fault(service='ec2', code='RequestLimitExceeded', times=2)]) as url:
        answer = client(url, 'ec2', attempts=3).describe_volumes()
    assert answer['Volumes'] == [] and answer['ResponseMetadata']['RetryAttempts'] == 2


def test_assumed_roles_are_separate_accounts():
    with emulated_aws() as url:
        one, two = (assumed(url, ROLE.replace('1'*4, n)) for n in ('1111', '9999'))
        client(url, 'ec2', **one).create_volume(AvailabilityZone='eu-west-1a', Size=1)
        seen = [len(client(url, 'ec2', **keys).describe_volumes()['Volumes']) for keys in (one, two, {})]
        who = [client(url, 'sts', **keys).get_caller_identity()['Account'] for keys in (one, two)]
    assert seen == [1, 0, 0]
    assert who == ['111122223333', '999922223333']


def test_a_role_asks_for_its_external_id():
    with emulated_aws(roles={ROLE: 'acme-1'}) as url:
        assume = client(url, 'sts').assume_role
        assert assume(RoleArn=ROLE, RoleSessionName='test', ExternalId='acme-1')['Credentials']
        for wrong in (dict(ExternalId='acme-2'), {}):
            assert error_code(assume, RoleArn=ROLE, RoleSessionName='test', **wrong) == 'AccessDenied'
        other = ROLE.replace('Reader', 'Writer')
        assert error_code(assume, RoleArn=other, RoleSessionName='test', ExternalId='acme-1') == 'AccessDenied'


def test_the_operators_own_aws_is_never_asked(tmp_path, monkeypatch):
    "A profile that would send every call elsewhere, a variable for one service, and a proxy"
    (tmp_path/'config').write_text('[profile work]\nregion = sa-east-1\nignore_configured_endpoint_urls = true\n'
                                   'services = away\n[services away]\nlogs =\n  endpoint_url = http://127.0.0.1:9\n')
    theirs = dict(AWS_CONFIG_FILE=str(tmp_path/'config'), AWS_PROFILE='work',
                  AWS_IGNORE_CONFIGURED_ENDPOINT_URLS='true')
    elsewhere = dict.fromkeys(('AWS_ENDPOINT_URL_EC2', 'http_proxy', 'HTTP_PROXY'), 'http://127.0.0.1:9')
    for name, value in (theirs | elsewhere).items(): monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with emulated_aws() as url:
        changes = emulated_environment(url, os.environ)
        _apply(changes)
        try:
            clients = [boto3.Session().client(service) for service in ('ec2', 'logs', 'sts', 's3')]
            asked, answered = [c.meta.endpoint_url for c in clients], clients[0].describe_volumes()['Volumes']
        finally: _apply({name: before.get(name) for name in changes})
    assert asked == [url]*4 and answered == []
    assert dict(os.environ) == before


def read_demo(folder):
    "Every workspace of the demo collected as a run collects it: (emulated AWS, snapshots)"
    (folder/'settings.ini').write_text(demo_settings(folder))
    operator = settings.load(folder/'settings.ini')
    workspaces = [(t.tenant_id, w) for t in operator.tenants.values() for w in t.workspaces.values()]
    with emulated_estate() as aws:
        return aws, [collect_snapshot(w.accounts, folder, tenant, w.workspace_id, w.workspace_id, estate.AS_OF, 'demo')
                     for tenant, w in workspaces]


def content(snapshots):
    "What a snapshot holds, in a form that can be compared: the hash of each table's file"
    return [{name: entry['sha256'] for name, entry in s.manifest['tables'].items() if name != 'coverage'}
            for s in snapshots]


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    "(emulated AWS, table -> rows of all workspaces, snapshots, what another process read meanwhile)"
    here, there = tmp_path_factory.mktemp('here'), tmp_path_factory.mktemp('there')
    script = ('import json, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import test_emulator as t\n'
              'aws, snapshots = t.read_demo(Path(sys.argv[2])); print(json.dumps([aws.names, t.content(snapshots)]))')
    other = subprocess.Popen([sys.executable, '-c', script, str(ROOT/'tests'), str(there)],
                             stdout=subprocess.PIPE, text=True)
    try:
        aws, snapshots = read_demo(here)
        printed, _ = other.communicate(timeout=240)
    finally: other.kill()
    tables = {name: pa.concat_tables(pq.read_table(s.tables[name]) for s in snapshots)
              for name in snapshots[0].tables}
    return aws, tables, snapshots, json.loads(printed)


@pytest.mark.slow
def test_two_processes_make_the_same_estate(demo):
    aws, _, snapshots, (names, hashes) = demo
    assert names == aws.names
    assert hashes == content(snapshots)


COMES_WITH = {'ebs_volumes': ('ec2_instances', '-root'), 'elastic_ips': ('nat_gateways', '-ip')}


@pytest.mark.slow
def test_every_resource_is_there_with_its_name(demo):
    "Except what the denied calls hide"
    aws, tables, *_ = demo
    hidden = {name for t in ('ebs_snapshots', 'rds_instances') for row in estate.TABLES[t]
              for name in estate.names(row) if row['because'] == 'not seen: AWS denies the call'}
    assert len(hidden) == 2
    for table, rows in estate.TABLES.items():
        want = [name for row in rows for name in estate.names(row)]
        if table in COMES_WITH:
            other, suffix = COMES_WITH[table]
            want += [name + suffix for row in estate.TABLES[other] for name in estate.names(row)]
        found = [aws.names[i] for i in tables[table]['resource_id'].to_pylist()]
        assert sorted(found) == sorted(set(want) - hidden), table


DATES = dict.fromkeys(('ebs_volumes', 'nat_gateways', 'load_balancers', 'rds_instances', 'log_groups', 's3_buckets'),
                      'created_at') | dict(ec2_instances='launched_at', ebs_snapshots='started_at')


@pytest.mark.slow
def test_every_resource_is_as_old_as_the_estate_says(demo):
    aws, tables, *_ = demo
    for table, column in DATES.items():
        ages = {name: int(age) for row in estate.TABLES[table] for name, age in
                zip(estate.names(row), str(row['age']).split()*row.get('n', 1), strict=True)}
        for resource in tables[table].to_pylist():
            if (name := aws.names[resource['resource_id']]).endswith('-root'): continue
            age = estate.AS_OF - (resource.get('state_changed_at') or resource[column])
            assert timedelta(0) <= age - timedelta(days=ages[name]) <= timedelta(hours=10), (table, name, age)


@pytest.mark.slow
def test_metrics_hold_the_largest_value_and_the_days_of_the_estate(demo):
    aws, tables, *_ = demo
    found = {(aws.names[r['resource_id']], r['metric'], r['statistic']): (r['datapoints'], r['max_value'])
             for r in tables['metrics'].to_pylist()}
    running = [row for row in estate.INSTANCES if row['cpu'] is not None]
    for row in running:
        for name in estate.names(row):
            days, cpu = found[name, 'CPUUtilization', 'Maximum']
            assert days == row['days'] and (cpu == row['cpu'] or (days < 7 and cpu < row['cpu'])), name
            assert found[name, 'NetworkIn', 'Sum'][1] + found[name, 'NetworkOut', 'Sum'][1] <= row['net']*1e6*1.0001
    assert found['us-nat-old', 'BytesOutToDestination', 'Sum'] == (14, 0)
    assert found['dev-nat-spare', 'BytesOutToDestination', 'Sum'] == (0, None)
    assert found['shop-nat-1', 'BytesOutToDestination', 'Sum'] == (14, 350*2**30)
    assert found['/shop/api', 'IncomingBytes', 'Sum'][0] == 90


@pytest.mark.slow
def test_coverage_shows_the_gaps_of_the_demo_and_no_others(demo):
    "The throttled page is among the answers, because boto3 asked again"
    _, tables, *_ = demo
    rows = tables['coverage'].to_pylist()
    gaps = {(r['account_id'], r['region'], r['service'], r['operation'], r['status']) for r in rows
            if r['status'] not in ('ok', 'not_opted_in')}
    assert gaps == {(ACCOUNT_IDS['acme-dev'], 'us-east-1', 'rds', 'DescribeDBInstances', 'denied'),
                    (ACCOUNT_IDS['globex-bi'], 'eu-west-1', 'ec2', 'DescribeSnapshots', 'denied')}
    assert {r['region'] for r in rows if r['status'] == 'not_opted_in'} == {'ap-east-1'}
    assert 'ap-east-1' in NAMED_REGIONS['acme', 'dev']
    [logs] = [r for r in rows if (r['account_id'], r['region'], r['operation']) ==
              (ACCOUNT_IDS['acme-shop'], 'eu-west-1', 'DescribeLogGroups')]
    assert (logs['status'], logs['items']) == ('ok', 53)   # two pages
