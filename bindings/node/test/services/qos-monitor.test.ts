import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  QOS_POLICIES, QosMonitor, type QosMonitorOptions, type QosPolicy, type QosViolation,
} from '../../src/services/qos-monitor.js';
import { FakeClock } from './fake-clock.js';

const GOOD = { ttftMs: 100, latencyMs: 1000, tokens: 50, isError: false };

function setUp(policies: QosPolicy[], more: Partial<QosMonitorOptions> = {}) {
  const clock = new FakeClock();
  const alerts: QosViolation[] = [];
  const restarts: QosViolation[] = [];
  const monitor = new QosMonitor({
    policies, clock,
    actions: { alert: (one) => alerts.push(one), restart: (one) => restarts.push(one) },
    ...more,
  });
  return { clock, monitor, alerts, restarts };
}

test('metrics over the window: p95 of first tokens and latencies, errors, throughput', async () => {
  const { clock, monitor } = setUp([]);
  assert.deepEqual(monitor.report().metrics,
    { ttft: null, latency_p95: null, error_rate: null, throughput: null });
  for (let i = 1; i <= 20; i++) monitor.record({ ...GOOD, ttftMs: i, latencyMs: 10 * i });
  monitor.record({ latencyMs: 1e6, tokens: 0, isError: true });
  const { metrics, samples } = monitor.report();
  assert.equal(samples, 21);
  assert.deepEqual(metrics,
    { ttft: 19, latency_p95: 190, error_rate: 1 / 21, throughput: 1000 / 2.1 });
  await clock.advance(60_001);
  assert.equal(monitor.report().samples, 0, 'old samples leave');
});

test('a broken policy acts once and then cools down', async () => {
  const policy: QosPolicy = { name: 'slow', metric: 'ttft', max: 50, action: 'alert' };
  const { clock, monitor, alerts } = setUp([policy]);
  monitor.record(GOOD);
  const [broken] = monitor.evaluate();
  assert.deepEqual(broken, {
    policy: 'slow', metric: 'ttft', value: 100, limit: 50, action: 'alert', isActedUpon: true,
  });
  assert.deepEqual(alerts, [broken]);
  assert.equal(monitor.evaluate()[0]?.isActedUpon, false);
  await clock.advance(60_000);
  monitor.record(GOOD);
  assert.equal(monitor.evaluate()[0]?.isActedUpon, true);
  const { evaluations, violations, actions } = monitor.report();
  assert.deepEqual({ evaluations, violations, actions },
    { evaluations: 3, violations: 3, actions: 2 });
});

test('limits on both sides; a quiet window breaks nothing', () => {
  const { monitor, alerts } = setUp([
    { name: 'throughput', metric: 'throughput', min: 60, max: 1000, action: 'alert' },
    { name: 'errors', metric: 'error_rate', max: 0.5, action: 'alert' },
  ]);
  assert.deepEqual(monitor.evaluate(), []);
  monitor.record(GOOD);
  assert.deepEqual(monitor.evaluate().map((one) => [one.policy, one.limit]), [['throughput', 60]]);
  assert.equal(alerts.length, 1);
});

test('many policies together take at most five actions in five minutes', () => {
  const policies = Array.from({ length: 7 }, (_, i): QosPolicy =>
    ({ name: `p${i}`, metric: 'ttft', max: 1, action: 'restart' }));
  const { monitor, restarts } = setUp(policies);
  monitor.record(GOOD);
  assert.equal(monitor.evaluate().length, 7);
  assert.equal(restarts.length, 5);
});

test('evaluates every five seconds once started, until stopped', async () => {
  const evaluated: number[] = [];
  const { clock, monitor } = setUp([], { onEvaluated: (broken) => evaluated.push(broken.length) });
  monitor.start();
  monitor.start();
  await clock.advance(15_000);
  assert.equal(evaluated.length, 3);
  monitor.stop();
  await clock.advance(15_000);
  assert.equal(evaluated.length, 3);
  assert.equal(clock.pending, 0);
});

test('an action may stop the monitor', async () => {
  const { clock, monitor } = setUp(
    [{ name: 'slow', metric: 'ttft', max: 1, action: 'restart' }],
    { actions: { restart: () => monitor.stop() } });
  monitor.start();
  monitor.record(GOOD);
  await clock.advance(5000);
  assert.equal(clock.pending, 0);
});

test('policies that cannot work are refused by name', () => {
  const refuse = (policy: unknown, pattern: RegExp) =>
    assert.throws(() => setUp([policy as QosPolicy], { actions: { alert: () => {} } }), pattern);
  refuse({ name: 'a', metric: 'ttft', max: 1, action: 'scale_up' },
    /'a': the action 'scale_up' is not there/);
  refuse({ name: 'a', metric: 'ttft', max: 1, action: 'restart' }, /'restart' is not there/);
  refuse({ name: 'a', metric: 'ttft', action: 'alert' }, /'a' has neither max nor min/);
  assert.throws(() => setUp([
    { name: 'a', metric: 'ttft', max: 1, action: 'alert' },
    { name: 'a', metric: 'ttft', max: 2, action: 'alert' },
  ]), /two QoS policies are called 'a'/);
});

test('the policies of a monitor that gets none are those of the surface', () => {
  assert.deepEqual(QOS_POLICIES.map(({ metric, max }) => [metric, max]),
    [['ttft', 550], ['error_rate', 0.05]]);
});

test('samples are bounded', () => {
  const { monitor } = setUp([]);
  for (let i = 0; i < 25_000; i++) monitor.record(GOOD);
  assert.ok(monitor.report().samples <= 10_000);
});
