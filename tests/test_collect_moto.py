"""Collecting over real HTTP from the emulated AWS: several accounts, refusals, throttling, kills, permissions."""
import json
import subprocess
import sys
from datetime import UTC, datetime
from itertools import count
from types import SimpleNamespace

import boto3
import pytest
from botocore.config import Config
from botocore.credentials import Credentials

from finops_nb import aws
from finops_nb.catalog import connect
from finops_nb.collect.snapshot import collect_snapshot, iam_policy, open_snapshot
from finops_nb.emulator import Fault, emulated_aws
from finops_nb.errors import ConfigError
from finops_nb.inventory import inventory_dir
from finops_nb.settings import Account

AS_OF = datetime(2026, 11, 24, 6, tzinfo=UTC)
MAIN = '123456789012'   # moto's account of unknown access keys
PROD, DEV = '111122223333', '222233334444'
REGIONS = {'us-east-1': 'opt-in-not-required', 'eu-west-1': 'opt-in-not-required', 'ap-east-1': 'not-opted-in'}


def role(account_id): return f'arn:aws:iam::{account_id}:role/FinopsReader'


def by_role(account_id, external_id=None, regions=()):
    return Account(account_id, role(account_id), external_id, None, regions)


@pytest.fixture
def start(monkeypatch):
    "start(faults, roles) -> emulated AWS in the environment of this process, as production finds its own"
    stack = []

    def go(faults=(), roles=None):
        emulated = emulated_aws(faults, REGIONS, roles or {})
        stack.append(emulated)
        url = emulated.__enter__()
        for k, v in dict(AWS_ENDPOINT_URL=url, AWS_ACCESS_KEY_ID='testing', AWS_SECRET_ACCESS_KEY='testing').items():
            monkeypatch.setenv(k, v)
        return url
    yield go
    for emulated in stack: emulated.__exit__(None, None, None)


def ec2(account_id=MAIN, region='eu-west-1'):
    session = aws.new_session()
    if account_id != MAIN: session = aws.assume_role(session, by_role(account_id), 'seed')
    return session.client('ec2', region)


def add_volume(account_id=MAIN, region='eu-west-1', size=8, **kwargs):
    made = ec2(account_id, region).create_volume(AvailabilityZone=f'{region}a', Size=size, VolumeType='gp2', **kwargs)
    return made['VolumeId']


def collect(accounts, folder, snapshot_id='s1', tenant_id='acme', **kwargs):
    return collect_snapshot(accounts, folder, tenant_id, 'prod', snapshot_id, AS_OF, 'run-1', **kwargs)


def rows(snapshot, sql):
    with connect() as db:
        snapshot.attach(db)
        return list(zip(*(c.to_pylist() for c in db.sql(sql).to_arrow_table().columns), strict=True))


def covered(snapshot, where): return rows(snapshot, f'select distinct status from coverage where {where} order by 1')


def left_behind(folder, tenant_id='acme'): return sorted(p.name for p in inventory_dir(folder, tenant_id).glob('[!.]*'))


def test_accounts_are_opened_by_their_roles_and_kept_apart(start, tmp_path):
    start(roles={role(PROD): 'acme-1', role(DEV): 'acme-1'})
    ids = {}
    for n, account_id in enumerate((PROD, DEV)):
        session = aws.assume_role(aws.new_session(), by_role(account_id, 'acme-1'), 'seed')
        made = session.client('ec2', 'us-east-1').create_volume(AvailabilityZone='us-east-1a', Size=10 + n)
        ids[account_id] = made['VolumeId']
    accounts = [by_role(DEV, 'acme-1'), by_role(PROD, 'acme-1')]
    snapshot = collect(accounts, tmp_path, tables={'ebs_volumes', 's3_buckets'})
    assert rows(snapshot, 'select account_id, region, resource_id, size_gib from ebs_volumes') == [
        (PROD, 'us-east-1', ids[PROD], 10), (DEV, 'us-east-1', ids[DEV], 11)]
    assert snapshot.manifest['accounts'] == [PROD, DEV]
    assert rows(snapshot, """select account_id, status, count(*) from coverage where table_name is not null
        group by all order by all""") == [
        (PROD, 'not_opted_in', 1), (PROD, 'ok', 4), (DEV, 'not_opted_in', 1), (DEV, 'ok', 4)]


def test_a_role_that_does_not_open_leaves_gaps_everywhere_and_stops_nobody(start, tmp_path):
    start(roles={role(PROD): 'acme-1', role(DEV): 'other'})
    snapshot = collect([by_role(PROD, 'acme-1'), by_role(DEV, 'acme-1', ('eu-west-1',))], tmp_path,
                       tables={'ebs_volumes', 'metrics'})
    assert covered(snapshot, f"account_id = '{DEV}'") == [('denied',)]
    gaps = rows(snapshot, f"select region, operation, error_code from coverage where account_id = '{DEV}' order by all")
    assert gaps == [
        ('aws-global', 'GetCallerIdentity', 'AccessDenied'), ('eu-west-1', 'DescribeVolumes', 'AccessDenied'),
        ('eu-west-1', 'GetMetricData', 'AccessDenied')]
    assert covered(snapshot, f"account_id = '{PROD}' and region = 'eu-west-1'") == [('ok',)]


def test_another_account_than_the_one_named_is_refused_and_leaves_nothing(start, tmp_path):
    start()
    strangers = Account(PROD, role(DEV))   # the role is the other account's
    with pytest.raises(ConfigError, match='belong to another account') as refused:
        collect([by_role(PROD), strangers], tmp_path)
    assert MAIN not in str(refused.value)
    assert left_behind(tmp_path) == []


def test_a_denied_call_is_a_gap_in_its_account_region_and_table_only(start, tmp_path):
    start([Fault(service='rds', region='eu-west-1', code='AccessDenied')])
    snapshot = collect([Account(MAIN)], tmp_path, tables={'rds_instances', 'ebs_volumes'})
    assert rows(snapshot, "select region, table_name, error_code from coverage where status = 'denied'") == [
        ('eu-west-1', 'rds_instances', 'AccessDenied')]
    assert covered(snapshot, "region = 'us-east-1' or table_name = 'ebs_volumes' and region = 'eu-west-1'") == [('ok',)]


def test_a_region_that_is_off_is_not_asked(start, tmp_path):
    asked = []
    start([SimpleNamespace(times=None, code='', matches=lambda call: asked.append(call.region))])
    snapshot = collect([Account(MAIN)], tmp_path, tables={'ebs_volumes', 'metrics'})
    assert rows(snapshot, """select region, status, error_code from coverage
        where operation = 'DescribeVolumes' order by 1""") == [
        ('ap-east-1', 'not_opted_in', None), ('eu-west-1', 'ok', None), ('us-east-1', 'ok', None)]
    assert set(asked) == {'us-east-1', 'eu-west-1'}


def test_regions_the_operator_names(start, tmp_path):
    start()
    add_volume(region='eu-west-1')
    add_volume(region='us-east-1')
    snapshot = collect([Account(MAIN, regions=('eu-west-1', 'ap-east-1'))], tmp_path, tables={'ebs_volumes'})
    assert rows(snapshot, 'select region from ebs_volumes') == [('eu-west-1',)]
    assert rows(snapshot, "select region, status from coverage where table_name is not null order by 1") == [
        ('ap-east-1', 'not_opted_in'), ('eu-west-1', 'ok')]
    with pytest.raises(ConfigError, match="no region 'eu-west-9'"):
        collect([Account(MAIN, regions=('eu-west-9',))], tmp_path, 's2', tables={'ebs_volumes'})


def test_when_the_list_of_regions_is_refused_auth_failures_tell_which_are_off(start, tmp_path):
    start([Fault(operation='DescribeRegions', code='UnauthorizedOperation')])
    snapshot = collect([Account(MAIN, regions=('ap-east-1', 'eu-west-1'))], tmp_path, tables={'ebs_volumes'})
    assert rows(snapshot, 'select region, operation, status, error_code from coverage order by all') == [
        ('ap-east-1', 'DescribeVolumes', 'not_opted_in', 'AuthFailure'),
        ('aws-global', 'DescribeRegions', 'denied', 'UnauthorizedOperation'),
        ('aws-global', 'GetCallerIdentity', 'ok', None), ('eu-west-1', 'DescribeVolumes', 'ok', None)]


def test_auth_failure_in_a_region_that_is_on_is_a_gap(start, tmp_path):
    start([Fault(region='eu-west-1', operation='DescribeVolumes', code='AuthFailure')])
    snapshot = collect([Account(MAIN)], tmp_path, tables={'ebs_volumes'})
    assert rows(snapshot, "select status from coverage where error_code = 'AuthFailure'") == [('failed',)]


def add_log_groups(n):
    logs = aws.new_session().client('logs', 'eu-west-1')
    for i in range(n): logs.create_log_group(logGroupName=f'/app/{i:03d}')


def test_throttled_calls_are_tried_again(start, tmp_path):
    start([Fault(operation='DescribeLogGroups', code='ThrottlingException', times=2)])
    add_log_groups(60)   # two pages of 50
    snapshot = collect([Account(MAIN, regions=('eu-west-1',))], tmp_path, tables={'log_groups'})
    assert rows(snapshot, 'select count(*), count(distinct resource_id) from log_groups') == [(60, 60)]
    assert covered(snapshot, "table_name = 'log_groups'") == [('ok',)]


def test_a_page_throttled_to_the_end_keeps_the_rows_before_it_and_is_a_gap(start, tmp_path, monkeypatch):
    calls = count()
    second = SimpleNamespace(times=None, code='ThrottlingException',
                             matches=lambda call: call.operation == 'DescribeLogGroups' and next(calls) >= 1)
    start([second])
    monkeypatch.setattr(aws, 'CLIENT', Config(retries=dict(mode='standard', total_max_attempts=2)))
    add_log_groups(60)
    snapshot = collect([Account(MAIN, regions=('eu-west-1',))], tmp_path, tables={'log_groups'})
    assert rows(snapshot, 'select count(*) from log_groups') == [(50,)]
    assert rows(snapshot, "select status, items, error_code from coverage where table_name = 'log_groups'") == [
        ('throttled', 50, 'ThrottlingException')]


def test_every_table_of_a_seeded_account(start, tmp_path):
    "One of everything; what comes back has ids, types and metrics"
    start()
    client = ec2()
    image = 'ami-12c6146b'
    client.run_instances(ImageId=image, MinCount=2, MaxCount=2, InstanceType='m5.large')
    [one, two] = [i['InstanceId'] for r in client.describe_instances()['Reservations'] for i in r['Instances']]
    client.stop_instances(InstanceIds=[two])
    volume = add_volume(TagSpecifications=[dict(ResourceType='volume', Tags=[dict(Key='env', Value='dev')])])
    made = client.create_snapshot(VolumeId=volume)['SnapshotId']
    client.create_image(InstanceId=one, Name='golden')
    address = client.allocate_address(Domain='vpc')['AllocationId']
    subnets = [s['SubnetId'] for s in client.describe_subnets()['Subnets']][:2]
    client.create_nat_gateway(SubnetId=subnets[0], AllocationId=address)
    session = aws.new_session()
    elbv2 = session.client('elbv2', 'eu-west-1')
    tags = [dict(Key='team', Value='web')]
    alb = elbv2.create_load_balancer(Name='web', Subnets=subnets, Tags=tags)['LoadBalancers'][0]['LoadBalancerArn']
    vpc = client.describe_vpcs()['Vpcs'][0]['VpcId']
    made_group = elbv2.create_target_group(Name='web', Protocol='HTTP', Port=80, VpcId=vpc)
    group = made_group['TargetGroups'][0]['TargetGroupArn']
    elbv2.register_targets(TargetGroupArn=group, Targets=[dict(Id=one)])
    session.client('elb', 'eu-west-1').create_load_balancer(
        LoadBalancerName='old', AvailabilityZones=['eu-west-1a'], Tags=[dict(Key='team', Value='old')],
        Listeners=[dict(Protocol='http', LoadBalancerPort=80, InstancePort=80)])
    session.client('rds', 'eu-west-1').create_db_instance(
        DBInstanceIdentifier='orders', Engine='postgres', DBInstanceClass='db.m5.large', AllocatedStorage=100,
        MasterUsername='admin', MasterUserPassword='not-a-secret')
    add_log_groups(1)
    s3 = session.client('s3', 'eu-west-1')
    s3.create_bucket(Bucket='acme-logs', CreateBucketConfiguration=dict(LocationConstraint='eu-west-1'))
    session.client('s3', 'us-east-1').create_bucket(Bucket='acme-first')
    session.client('cloudwatch', 'eu-west-1').put_metric_data(Namespace='AWS/EC2', MetricData=[
        dict(MetricName='CPUUtilization', Dimensions=[dict(Name='InstanceId', Value=one)],
             Timestamp=AS_OF.replace(day=day), Value=value)
        for day, value in ((20, 2.0), (21, 4.0), (24, 99.0))])   # the 24th is not over

    steps = []
    snapshot = collect([Account(MAIN)], tmp_path, progress=lambda done, total: steps.append((done, total)))
    assert rows(snapshot, """select resource_id, state, instance_type, state_changed_at is null
        from ec2_instances order by state""") == [
        (one, 'running', 'm5.large', True), (two, 'stopped', 'm5.large', False)]
    assert (volume, 8, 'dev') in rows(snapshot, "select resource_id, size_gib, tags['env'] from ebs_volumes")
    assert (made,) in rows(snapshot, 'select resource_id from ebs_snapshots')
    assert rows(snapshot, 'select name, len(snapshot_ids) > 0 from ec2_images') == [('golden', True)]
    assert rows(snapshot, 'select resource_id from elastic_ips') == [(address,)]
    assert rows(snapshot, 'select state, public_ip_count from nat_gateways') == [('available', 1)]
    assert rows(snapshot, "select kind, name, resource_arn, tags['team'] from load_balancers order by 1") == [
        ('application', 'web', alb, 'web'),
        ('classic', 'old', f'arn:aws:elasticloadbalancing:eu-west-1:{MAIN}:loadbalancer/old', 'old')]
    assert rows(snapshot, 'select resource_arn, target_type from target_groups') == [(group, 'instance')]
    assert rows(snapshot, 'select target_group_arn, target_id from targets') == [(group, one)]
    assert rows(snapshot, 'select resource_id, engine, storage_gib from rds_instances') == [('orders', 'postgres', 100)]
    assert rows(snapshot, 'select resource_id, retention_days from log_groups') == [('/app/000', None)]
    assert rows(snapshot, 'select resource_id, region from s3_buckets') == [
        ('acme-logs', 'eu-west-1'), ('acme-first', 'us-east-1')]
    assert rows(snapshot, """select statistic, datapoints, expected_datapoints, avg_value, max_value from metrics
        where metric = 'CPUUtilization' order by 1""") == [('Average', 2, 14, 3, 4), ('Maximum', 2, 14, 3, 4)]
    assert covered(snapshot, "region <> 'ap-east-1'") == [('ok',)]
    assert steps == [(n, len(steps)) for n in range(1, len(steps) + 1)]
    # the same estate again: the same bytes, whichever thread was faster
    again = collect([Account(MAIN)], tmp_path, 's2')
    def hashes(s): return {n: e['sha256'] for n, e in s.manifest['tables'].items() if n != 'coverage'}
    assert hashes(again) == hashes(snapshot)


def test_the_policy_is_enough_and_every_permission_in_it_is_needed(start, tmp_path):
    start()
    from moto import settings
    iam = boto3.client('iam', region_name='us-east-1')
    iam.create_user(UserName='reader')
    key = iam.create_access_key(UserName='reader')['AccessKey']
    credentials = Credentials(key['AccessKeyId'], key['SecretAccessKey'])
    add_volume()
    elbv2 = aws.new_session().client('elbv2', 'eu-west-1')
    vpc = ec2().describe_vpcs()['Vpcs'][0]['VpcId']
    elbv2.create_target_group(Name='web', Protocol='HTTP', Port=80, VpcId=vpc)

    def collect_with(policy, snapshot_id):
        iam.put_user_policy(UserName='reader', PolicyName='finops', PolicyDocument=json.dumps(policy))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(settings, 'INITIAL_NO_AUTH_ACTION_COUNT', 0)
            return collect([Account(MAIN, regions=('eu-west-1',))], tmp_path, snapshot_id,
                           connect=lambda account, run_id: aws.new_session(credentials=credentials))

    assert covered(collect_with(iam_policy(), 'full'), "true") == [('ok',)]
    poor = iam_policy()
    for action in ('ec2:DescribeVolumes', 's3:ListAllMyBuckets'): poor['Statement'][0]['Action'].remove(action)
    assert rows(collect_with(poor, 'poor'), "select table_name from coverage where status = 'denied' order by 1") == [
        ('ebs_volumes',), ('s3_buckets',), ('s3_buckets.region',)]


def test_two_tenants_can_not_read_each_other(start, tmp_path):
    start()
    add_volume(PROD, size=1)
    add_volume(DEV, size=2)
    collect([by_role(PROD)], tmp_path, 'run-1', 'acme', tables={'ebs_volumes'})
    collect([by_role(DEV)], tmp_path, 'run-1', 'globex', tables={'ebs_volumes'})
    collect([by_role(DEV)], tmp_path, 'globex-2', 'globex', tables={'ebs_volumes'})
    assert rows(open_snapshot(tmp_path, 'acme', 'run-1'), 'select account_id, size_gib from ebs_volumes') == [(PROD, 1)]
    theirs = open_snapshot(tmp_path, 'globex', 'run-1')
    assert rows(theirs, 'select account_id, size_gib from ebs_volumes') == [(DEV, 2)]
    for stolen in ('globex-2', '../tenant_id=globex/globex-2', 'tenant_id=globex/run-1', '*', 'globex*'):
        with pytest.raises(ConfigError): open_snapshot(tmp_path, 'acme', stolen)
    for tenant in ('*', '../acme', 'acme/../globex'):
        with pytest.raises(ConfigError): open_snapshot(tmp_path, tenant, 'run-1')
    # a manifest that was copied over still names its owner
    copied = inventory_dir(tmp_path, 'acme') / 'globex-2.json'
    copied.write_bytes((inventory_dir(tmp_path, 'globex') / 'globex-2.json').read_bytes())
    with pytest.raises(Exception, match='names another tenant'): open_snapshot(tmp_path, 'acme', 'globex-2')


KILLED = """
import os, shutil, signal, sys
from datetime import UTC, datetime
from finops_nb import inventory
from finops_nb.collect import snapshot
from finops_nb.settings import Account

def die_at(n):
    "kill -9 when the n-th of these steps begins"
    left = [n]
    def dying(f):
        def step(*args, **kwargs):
            if not left[0]: os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return f(*args, **kwargs)
        return step
    os.fsync, os.link, shutil.rmtree = dying(os.fsync), dying(os.link), dying(shutil.rmtree)
    inventory.Parts.write, inventory.Parts.close = dying(inventory.Parts.write), dying(inventory.Parts.close)

folder, n = sys.argv[1], 0
while True:
    pid = os.fork()
    if not pid:
        die_at(n)
        snapshot.collect_snapshot([Account('123456789012', regions=('eu-west-1',))], folder, 'acme', 'prod', f's{n}',
                                  datetime(2026, 11, 24, 6, tzinfo=UTC), 'r', tables={'ebs_volumes', 'elastic_ips'})
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    print(n, os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), flush=True)
    if not os.WIFSIGNALED(status): break
    n += 1
"""


def test_kill_9_at_every_step_leaves_no_half_snapshot(start, tmp_path):
    start()
    add_volume()
    done = subprocess.run([sys.executable, '-c', KILLED, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    kills = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(kills) >= 10 and [code for _, code in kills] == [9] * (len(kills) - 1) + [0]
    manifests = sorted(inventory_dir(tmp_path, 'acme').glob('*.json'))
    assert f's{kills[-1][0]}.json' in {m.name for m in manifests}
    assert len(manifests) <= 2   # the last kill, at the fsync after the link, came too late to undo anything
    for manifest in manifests:
        assert rows(open_snapshot(tmp_path, 'acme', manifest.stem), 'select size_gib from ebs_volumes') == [(8,)]
    # every folder that no manifest names was swept by the next run
    folders = {p.name for p in inventory_dir(tmp_path, 'acme').iterdir() if p.is_dir()}
    assert folders == {json.loads(m.read_text())['folder'] for m in manifests}


def test_a_snapshot_being_collected_is_not_swept_and_the_second_of_one_name_is_told(start, tmp_path):
    start()
    add_volume()
    account = [Account(MAIN, regions=('eu-west-1',))]

    def meanwhile(done, total):
        if done == 1: collect(account, tmp_path, 'same', tables={'ebs_volumes'})

    with pytest.raises(ConfigError, match='exists and never changes'):
        collect(account, tmp_path, 'same', tables={'ebs_volumes', 'elastic_ips'}, progress=meanwhile)
    assert set(open_snapshot(tmp_path, 'acme', 'same').tables) == {'ebs_volumes', 'coverage'}
    assert len(left_behind(tmp_path)) == 2   # one manifest, one folder
