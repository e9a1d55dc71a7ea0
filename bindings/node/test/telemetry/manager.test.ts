import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  createTelemetryBridge, getMetrics, TelemetryManager, type TelemetryConfig,
} from '../../src/telemetry/index.js';
import { scrape, valueOf } from './page.js';

const ON: TelemetryConfig = { enabled: true, prometheusPort: 0 };

test('every hook moves its metrics on the page', async () => {
  const { hooks, manager } = createTelemetryBridge(ON);
  await manager.start();
  try {
    hooks.onModelLoaded({ descriptor: { id: 'm' }, metadata: { loadTimeMs: 70 } });
    hooks.onModelLoaded({ descriptor: { id: 'd' }, draft: true, metadata: {} });
    hooks.onModelUnloaded('m');
    hooks.onGenerationCompleted({ tokensGenerated: 30, totalTime: 0.5, modelId: 'm' });
    hooks.onGenerationFailed({
      modelId: 'm', code: 'Timeout', tokensGenerated: 4, durationMs: 100,
    });
    hooks.onError({ code: 'Timeout', name: 'TimeoutError' });
    hooks.onIpcRequestStarted('tokenize');
    hooks.onIpcRequestStarted('tokenize');
    hooks.onIpcRequestFinished('tokenize', 3);
    hooks.onIpcRequestStarted('embed');
    hooks.onIpcRequestFinished('embed', 3, 'InvalidParams');
    hooks.onBatchDispatched({
      partitionKey: 'tokenize', batchSize: 5, durationMs: 1, queueWaitAvgMs: 0, queueWaitP95Ms: 0,
      priorityMix: { high: 0, normal: 5, low: 0 }, targetBatchSize: 20,
    });
    hooks.onRetry('tokenize');
    hooks.onCircuitBreakerStateChange('tokenize:m', 'closed', 'open');
    hooks.onQosEvaluated([{
      policy: 'slow', metric: 'ttft', value: 2, limit: 1, action: 'alert', isActedUpon: true,
    }]);
    const page = await scrape(manager.port);
    const rows: [string, Record<string, string>, number][] = [
      ['models_loaded_total', { model: 'm', type: 'text' }, 1],
      ['models_loaded_total', { model: 'd', type: 'draft' }, 1],
      ['models_unloaded_total', { model: 'm' }, 1],
      ['model_load_duration_ms_sum', { model: 'm' }, 70],
      ['model_load_duration_ms_count', {}, 1],
      ['tokens_generated_total', { model: 'm' }, 34],
      ['generation_duration_ms_sum', { model: 'm' }, 600],
      ['generation_duration_ms_count', { model: 'm' }, 2],
      ['generation_errors_total', { model: 'm', code: 'Timeout' }, 1],
      ['errors_total', { code: 'Timeout', type: 'TimeoutError' }, 1],
      ['ipc_requests_total', { method: 'tokenize', status: 'ok' }, 1],
      ['ipc_requests_total', { method: 'embed', status: 'InvalidParams' }, 1],
      ['ipc_request_duration_ms_count', {}, 2],
      ['ipc_requests_in_flight', { method: 'tokenize' }, 1],
      ['ipc_requests_in_flight', { method: 'embed' }, 0],
      ['batch_operations_total', { operation: 'tokenize' }, 1],
      ['batch_size_sum', { operation: 'tokenize' }, 5],
      ['batch_efficiency_sum', { operation: 'tokenize' }, 0.25],
      ['retry_attempts_total', { method: 'tokenize' }, 1],
      ['circuit_breaker_state_changes_total',
        { circuit: 'tokenize:m', from: 'closed', to: 'open' }, 1],
      ['qos_evaluations_total', {}, 1],
      ['qos_slo_violations_total', { policy: 'slow', metric: 'ttft' }, 1],
    ];
    for (const [name, labels, value] of rows) {
      assert.equal(valueOf(page, `kr_serve_${name}`, labels), value, name);
    }
    assert.equal(valueOf(page, 'target_info', { service_name: 'kr-serve' }), 1);
    const shown = new Set(page.map((one) => one.name.replace(/_(sum|count|bucket)$/, '')));
    const tested = new Set(rows.map(([name]) => `kr_serve_${name.replace(/_(sum|count)$/, '')}`));
    assert.deepEqual([...shown].filter((name) => name.startsWith('kr_serve_')).sort(),
      [...tested].sort(), 'a metric without a row here');
  } finally {
    await manager.shutdown();
  }
});

test('nothing is counted before start() or behind shutdown(), and nothing breaks', async () => {
  const { hooks, manager } = createTelemetryBridge(ON);
  hooks.onRetry('tokenize');
  hooks.onIpcRequestStarted('tokenize');
  assert.deepEqual([manager.isStarted, manager.metrics, manager.port],
    [false, undefined, undefined]);
  assert.equal(getMetrics(), null);
  await Promise.all([manager.start(), manager.start()]);
  assert.equal(manager.isStarted, true);
  assert.equal(getMetrics(), manager.metrics);
  hooks.onIpcRequestFinished('tokenize', 1);
  const page = await scrape(manager.port);
  assert.equal(valueOf(page, 'kr_serve_retry_attempts_total'), undefined);
  assert.equal(valueOf(page, 'kr_serve_ipc_requests_in_flight') ?? 0, 0, 'never below 0');
  await Promise.all([manager.shutdown(), manager.shutdown()]);
  hooks.onRetry('tokenize');
  assert.deepEqual([manager.isStarted, getMetrics()], [false, null]);
  await manager.start();
  assert.equal(manager.isStarted, true, 'a manager may start again');
  await manager.shutdown();
});

test('enabled: false opens nothing', async () => {
  const manager = new TelemetryManager({ enabled: false });
  await manager.start();
  assert.deepEqual([manager.isStarted, manager.port], [false, undefined]);
  await manager.shutdown();
});

test('only GET /metrics is answered', async () => {
  const manager = new TelemetryManager(ON);
  await manager.start();
  try {
    const url = `http://127.0.0.1:${manager.port}`;
    assert.equal((await fetch(`${url}/metrics`)).status, 200);
    assert.equal((await fetch(`${url}/metrics?x=1`)).status, 200);
    assert.equal((await fetch(`${url}/`)).status, 404);
    assert.equal((await fetch(`${url}/metrics`, { method: 'POST', body: 'x' })).status, 405);
  } finally {
    await manager.shutdown();
  }
});

test('a port that is taken is an error of start(); a later start works', async () => {
  const first = new TelemetryManager(ON);
  await first.start();
  const second = new TelemetryManager({ ...ON, prometheusPort: first.port as number });
  await assert.rejects(second.start(), /EADDRINUSE/);
  assert.equal(second.isStarted, false);
  await first.shutdown();
  await second.start();
  assert.equal(second.isStarted, true);
  await second.shutdown();
});

test('an exporter of OpenTelemetry gets the metrics, too', async () => {
  const { InMemoryMetricExporter, AggregationTemporality }
    = await import('@opentelemetry/sdk-metrics');
  const exporter = new InMemoryMetricExporter(AggregationTemporality.CUMULATIVE);
  const manager = new TelemetryManager({ ...ON, exporter, serviceName: 'mine' });
  await manager.start();
  manager.metrics?.retryAttemptsTotal.add(2, { method: 'tokenize' });
  await manager.shutdown(); // flushes
  const [exported] = exporter.getMetrics();
  assert.equal(exported?.resource.attributes['service.name'], 'mine');
  assert.equal(exported?.scopeMetrics[0]?.metrics[0]?.descriptor.name,
    'kr_serve_retry_attempts_total');
});

test('mistakes in the configuration are named', () => {
  const refuse = (more: object, pattern: RegExp) =>
    assert.throws(() => new TelemetryManager({ ...ON, ...more }), pattern);
  refuse({ serviceName: 'a b' }, /'serviceName'/);
  refuse({ serviceName: '' }, /'serviceName'/);
  refuse({ serviceName: 'a'.repeat(101) }, /'serviceName'/);
  refuse({ prometheusPort: 70_000 }, /'prometheusPort'/);
  refuse({ prometheusPort: 1.5 }, /'prometheusPort'/);
  refuse({ exportIntervalMs: 999 }, /'exportIntervalMs'/);
  refuse({ exportIntervalMs: 600_001 }, /'exportIntervalMs'/);
});
