// The configuration and the options of an engine.
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { loadConfig } from '../src/config.js';
import type { ConfigInput } from '../src/config.js';
import { Engine } from '../src/index.js';
import { runtimeArgs } from '../src/transport/make.js';
import { scratch } from './support.js';

const silent = (): void => {};
const read = (input: unknown, warn = silent as (message: string) => void) =>
  loadConfig(input as ConfigInput, warn);

test('defaults are those of the surface', () => {
  const config = read(undefined);
  assert.equal(config.json_rpc.default_timeout_ms, 300_000);
  assert.deepEqual(config.json_rpc.retry, {
    max_attempts: 3, initial_delay_ms: 100, backoff_multiplier: 2, max_delay_ms: 5000, jitter: 0.25,
  });
  assert.deepEqual(config.json_rpc.circuit_breaker, {
    failure_threshold: 5, failure_window_ms: 60_000, recovery_timeout_ms: 10_000,
    half_open_success_threshold: 2,
  });
  assert.equal(config.runtime.startup_timeout_ms, 30_000);
  assert.equal(config.runtime.max_restarts, 3);
  assert.equal(config.model.default_max_tokens, 512);
  assert.equal(config.model.max_loaded_models, 5);
  assert.equal(config.stream_registry.default_timeout_ms, 300_000);
  assert.deepEqual(config.batch_queue, {
    enabled: true, max_batch_size: 20, flush_interval_ms: 2, adaptive_sizing: true,
    target_batch_time_ms: 10, priority_queue: true,
  });
  assert.equal(config.telemetry.prometheus_port, 9464);
});

test('lesson 42: one place for each key, unknown ones are refused, dead ones are named', () => {
  assert.throws(() => read({ batch_queue: { max_batch: 3 } }), {
    code: 'InvalidParams', message: /'config\.batch_queue\.max_batch' is not a known field/,
  });
  assert.throws(() => read({ batching: {} }), { message: /'config\.batching'/ });
  assert.throws(() => read({ json_rpc: { default_timeout_ms: 'x' } }), {
    message: /'config\.json_rpc\.default_timeout_ms' must be a number/,
  });
  assert.throws(() => read([]), { code: 'InvalidParams' });
  const warnings: string[] = [];
  const config = read({
    performance: { use_messagepack: true }, mlx: {}, python_runtime: { max_restarts: 7 },
  }, (message) => warnings.push(message));
  assert.equal(config.runtime.max_restarts, 7);
  assert.equal(warnings.length, 3);
  assert.ok(warnings.some((warning) => warning.includes("'performance' has no effect")));
});

test('a file is read, and what is wrong with it is said', () => {
  const path = join(scratch(), 'config.json');
  writeFileSync(path, '{"model": {"max_loaded_models": 2}}');
  assert.equal(read(path).model.max_loaded_models, 2);
  writeFileSync(path, '{');
  assert.throws(() => read(path), { code: 'InvalidParams', message: /config\.json/ });
  assert.throws(() => read('/no/such/file'), { code: 'InvalidParams' });
});

test('options of an engine are checked by name', () => {
  const make = (options: unknown): unknown => new Engine(options as never);
  for (const [field, options] of [
    ['pythonPath', { pythonPath: '/usr/bin/python3' }], ['runtimePath', { runtimePath: 'x' }],
    ['cache.maxAgeDays', { cache: { maxAgeDays: 3 } }],
    ['cache.evictionPolicy', { cache: { evictionPolicy: 'lfu' } }],
    ['cache.enableCompression', { cache: { enableCompression: true } }],
    ['transport', { transport: 'carrier-pigeon' }], ['odd', { odd: 1 }],
    ['telemetry.hooks.onNothing', { telemetry: { enabled: true, hooks: { onNothing() {} } } }],
    ['runtime.args', { runtime: { args: 'x' } }],
  ] as const) {
    assert.throws(() => make(options), (error: { code: string; message: string }) =>
      error.code === 'InvalidParams' && error.message.includes(`'${field}'`), field);
  }
});

test('options of the cache are options of the runtime', () => {
  assert.deepEqual(runtimeArgs({
    cache: { enabled: false, cacheDir: '/c', maxSizeBytes: 5 * 1024 * 1024 }, cacheDir: '/old',
    runtime: { args: ['--parallel', '2'] },
  }, read(undefined)),
  ['--no-cache', '--cache-dir', '/c', '--cache-size', '5', '--parallel', '2']);
  assert.deepEqual(runtimeArgs({ cacheDir: '/old' }, read(undefined)), ['--cache-dir', '/old']);
});
