// Each metric is moved through the public API of an engine that has a bridge's hooks.
import assert from 'node:assert/strict';
import { test, type TestContext } from 'node:test';

import { createTelemetryBridge } from '../../src/telemetry/index.js';
import type { EngineOptions } from '../../src/types.js';
import {
  NOTHING, ScriptedTransport, eventually, failure, makeEngine, makeTinyEngine,
} from '../support.js';
import type { Answers } from '../support.js';
import { scrape, valueOf } from './page.js';

async function bridgeOf(t: TestContext) {
  const { hooks, manager } = createTelemetryBridge({ enabled: true, prometheusPort: 0 });
  await manager.start();
  t.after(() => manager.shutdown());
  const value = async (name: string, labels: Record<string, string> = {}) =>
    valueOf(await scrape(manager.port), `kr_serve_${name}`, labels) ?? 0;
  return { telemetry: { enabled: true, hooks }, value };
}

/** An engine with the model `tiny`, and what its metrics say. */
async function setUp(t: TestContext, options: EngineOptions = {}) {
  const { telemetry, value } = await bridgeOf(t);
  return { engine: await makeTinyEngine(t, { telemetry, ...options }), value };
}

/** An engine on a script. */
async function scripted(t: TestContext, answers: Answers, options: EngineOptions = {}) {
  const { telemetry, value } = await bridgeOf(t);
  const transports: ScriptedTransport[] = [];
  const runner = () => {
    const transport = new ScriptedTransport(answers);
    transports.push(transport);
    return transport;
  };
  return { engine: makeEngine(t, { telemetry, ...options }, { runner }), transports, value };
}

const LOADED = { model_id: 'm', state: 'ready', type: 'text', draft: false, context_length: 512 };
const GREEDY = { model: 'tiny', prompt: 'a', maxTokens: 7, temperature: 0, ignoreEos: true };

test('models: loaded, unloaded, time of a load', async (t) => {
  const { engine, value } = await setUp(t);
  assert.equal(await value('models_loaded_total', { model: 'tiny', type: 'text' }), 1);
  assert.equal(await value('model_load_duration_ms_count', { model: 'tiny' }), 1);
  assert.ok(await value('model_load_duration_ms_sum') > 0);
  assert.equal(await value('models_unloaded_total'), 0);
  await engine.unloadModel('tiny');
  assert.equal(await value('models_unloaded_total', { model: 'tiny' }), 1);
});

test('lesson 38: tokens are counted once, streamed or not; times; errors', async (t) => {
  const { engine, value } = await setUp(t);
  await engine.generate(GREEDY);
  assert.equal(await value('tokens_generated_total', { model: 'tiny' }), 7);
  for await (const chunk of engine.createGenerator(GREEDY)) assert.notEqual(chunk.type, 'error');
  assert.equal(await value('tokens_generated_total', { model: 'tiny' }), 14);
  assert.equal(await value('generation_duration_ms_count', { model: 'tiny' }), 2);
  assert.ok(await value('generation_duration_ms_sum') > 0);
  assert.equal(await value('generation_errors_total'), 0);
  const error = await failure(engine.generate({ ...GREEDY, prompt: 'long '.repeat(2000) }));
  assert.equal(await value('generation_errors_total', { model: 'tiny', code: error.code }), 1);
  assert.equal(await value('errors_total', { code: error.code, type: 'EngineError' }), 1);
});

test('calls of the runtime: number, time, status', async (t) => {
  const { engine, value } = await setUp(t);
  const before = await value('ipc_request_duration_ms_count', { method: 'count_tokens' });
  await engine.countTokens({ model: 'tiny', text: 'a b c' });
  assert.equal(await value('ipc_requests_total', { method: 'count_tokens', status: 'ok' }), 1);
  assert.equal(await value('ipc_request_duration_ms_count', { method: 'count_tokens' }),
    before + 1);
  await failure(engine.detokenize({ model: 'tiny', tokens: [2_000_000_000] }));
  assert.equal(await value('ipc_requests_total', { method: 'detokenize', status: 'ok' }), 0);
  assert.equal(await value('ipc_requests_total', { method: 'detokenize' }), 1);
  assert.equal(await value('ipc_requests_in_flight'), 0);
});

test('calls in flight', async (t) => {
  const { engine, transports, value } = await scripted(t, ({ method }) => (
    method === 'load_model' ? LOADED : method === 'count_tokens' ? NOTHING : undefined));
  await engine.loadModel('m');
  const call = engine.countTokens({ model: 'm', text: 'a' });
  const [request] = await eventually('the call', () => {
    const found = transports[0]?.of('count_tokens') ?? [];
    return found.length > 0 ? found : undefined;
  }) ?? [];
  assert.equal(await value('ipc_requests_in_flight', { method: 'count_tokens' }), 1);
  transports[0]?.say({ id: request?.id, result: { count: 1 } });
  assert.equal(await call, 1);
  assert.equal(await value('ipc_requests_in_flight', { method: 'count_tokens' }), 0);
});

test('batches: number, size, efficiency', async (t) => {
  const { engine, value } = await setUp(t, { config: { batch_queue: { max_batch_size: 10 } } });
  await Promise.all([...'abcde'].map((text) => engine.tokenize({ model: 'tiny', text })));
  assert.equal(await value('batch_operations_total', { operation: 'tokenize' }), 1);
  assert.equal(await value('batch_size_sum', { operation: 'tokenize' }), 5);
  assert.equal(await value('batch_efficiency_sum', { operation: 'tokenize' }), 0.5);
});

test('calls made again', async (t) => {
  let nRefused = 0;
  const { engine, value } = await scripted(t, (request, transport) => {
    if (request.method === 'load_model') return LOADED;
    if (request.method !== 'count_tokens') return undefined;
    if (nRefused === 2) return { count: 3 };
    nRefused++;
    transport.fail(request, -32000, 'full', { type: 'ServerError', kr_status: 14 });
    return NOTHING;
  }, { config: { json_rpc: { retry: { initial_delay_ms: 1 } } } });
  await engine.loadModel('m');
  assert.equal(await engine.countTokens({ model: 'm', text: 'a' }), 3);
  assert.equal(await value('retry_attempts_total', { method: 'count_tokens' }), 2);
});

test('circuits that open', async (t) => {
  const { engine, value } = await scripted(t, (request, transport) => {
    if (request.method === 'load_model') return LOADED;
    if (request.method !== 'detokenize') return undefined;
    transport.fail(request, -32603, 'a bug', { type: 'InternalError' });
    return NOTHING;
  });
  await engine.loadModel('m');
  for (let i = 0; i < 5; i++) await failure(engine.detokenize({ model: 'm', tokens: [1] }));
  assert.equal(await value('circuit_breaker_state_changes_total',
    { circuit: 'detokenize:m', from: 'closed', to: 'open' }), 1);
  await failure(engine.detokenize({ model: 'm', tokens: [1] }), 'TransportError');
  assert.ok(await value('errors_total') >= 1);
});

test('QoS: evaluations and broken policies', async (t) => {
  const { engine, value } = await setUp(t, {
    config: {
      qos: {
        enabled: true, evaluation_interval_ms: 1,
        policies: [{ name: 'never', metric: 'latency_p95', max: 0, action: 'alert' }],
      },
    },
  });
  const violations: string[] = [];
  engine.on('qos:violation', ({ violation }) => violations.push(violation.policy));
  await eventually('an evaluation', async () => await value('qos_evaluations_total') > 0);
  assert.equal(await value('qos_slo_violations_total'), 0, 'nothing was generated');
  await engine.generate(GREEDY);
  await eventually('a violation', async () => await value('qos_slo_violations_total',
    { policy: 'never', metric: 'latency_p95' }) > 0);
  assert.deepEqual([...new Set(violations)], ['never']);
});

test('the report of the runtime has percentiles that move', async (t) => {
  const { engine } = await setUp(t);
  for (let i = 0; i < 12; i++) await engine.generate({ ...GREEDY, maxTokens: 2 });
  await engine.tokenize({ model: 'tiny', text: 'a' });
  const report = await engine.getTelemetryReport();
  assert.deepEqual([report.enabled, report.generation.calls, report.tokenization.calls],
    [true, 12, 1]);
  for (const { latencyMs } of [report.generation, report.tokenization]) {
    const { p50, p95, p99, max } = latencyMs;
    assert.ok(p50 > 0 && p50 <= p95 && p95 <= p99 && max > 0, JSON.stringify(latencyMs));
  }
  assert.equal(report.generation.totalTokens, 24);
  assert.ok(report.generation.throughput.tokensPerSecond > 0);
});
