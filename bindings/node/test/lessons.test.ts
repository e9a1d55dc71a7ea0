// Every lesson of the ancestor has its test or its reason, and those that fit no other file.
import assert from 'node:assert/strict';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { ChildTransport } from '../src/transport/child.js';
import { Engine } from '../src/index.js';
import {
  KR, PACKAGE, ROOT, eventually, failure, makeEngine, makeTinyEngine, tinyModel,
} from './support.js';

const N_LESSONS = 45;

test('the table of lessons is whole and true', () => {
  const files = readdirSync(join(PACKAGE, 'test'), { recursive: true } as never) as string[];
  const names = files.map(String).filter((file) => file.endsWith('.test.ts'))
    .map((file) => readFileSync(join(PACKAGE, 'test', file), 'utf8')).join('\n');
  const named = new Set<number>();
  for (const match of names.matchAll(/test\(\s*['`"][^\n]*?lesson (\d+)\b/gi)) {
    named.add(Number(match[1]));
  }
  const table = readFileSync(join(PACKAGE, 'test', 'lessons.md'), 'utf8');
  const rows = [...table.matchAll(/^\| (\d+) \| (here|elsewhere|not) \| ?(.*?) ?\|$/gm)];
  assert.deepEqual(rows.map((row) => Number(row[1])),
    Array.from({ length: N_LESSONS }, (_, index) => index + 1));
  for (const [, number, where, text] of rows) {
    if (where === 'here') assert.ok(named.has(Number(number)), `no test of lesson ${number}`);
    else assert.ok((text ?? '').length > 10, `lesson ${number} has no reason`);
    if (where !== 'elsewhere') continue;
    const path = /`([^`]+)`/.exec(text ?? '')?.[1] ?? '';
    assert.ok(existsSync(join(ROOT, path)), path);
  }
});

function raw(t: { after(run: () => unknown): void }):
{ transport: ChildTransport; lines: string[] } {
  const transport = new ChildTransport({
    krPath: KR, args: ['--no-cache'], maxMessageBytes: 1 << 20, shutdownTimeoutMs: 60_000,
  });
  const lines: string[] = [];
  transport.onMessage = (line) => lines.push(line);
  t.after(() => transport.stop());
  return { transport, lines };
}

test('lesson 4: a line that is no JSON is answered at once and spoils no other', async (t) => {
  const { transport, lines } = raw(t);
  await transport.start();
  await transport.send('{"jsonrpc": "2.0", "id": 1, "method"');
  await transport.send('{"jsonrpc": "2.0", "id": 2, "method": "list_models"}');
  await eventually('two answers', () => lines.length === 2);
  assert.match(lines[0] ?? '', /-32700/);
  assert.deepEqual((JSON.parse(lines[1] ?? '') as { result: object }).result, { models: [] });
});

test('lesson 5: whoever sends too much is told so, and nobody else suffers', async (t) => {
  const engine = await makeTinyEngine(t);
  const text = 'x'.repeat(17 * 1024 * 1024);
  const [error, other] = await Promise.all([
    failure(engine.countTokens({ model: 'tiny', text }), 'InvalidRequest'),
    engine.countTokens({ model: 'tiny', text: 'x' }),
  ]);
  assert.match(error.message, /line|bytes/);
  assert.ok(other > 0);
});

test('lesson 6: a load blocks nobody', async (t) => {
  const engine = await makeTinyEngine(t);
  const order: string[] = [];
  const loads = Array.from({ length: 4 }, (_, n) =>
    engine.loadModel({ model: `m${n}`, localPath: tinyModel() }).then(() => order.push('load')));
  const params = { model: 'tiny', prompt: 'a', maxTokens: 20, ignoreEos: true };
  const stream = engine.createGenerator(params);
  await Promise.all([...loads, (async () => {
    assert.equal((await engine.healthCheck()).runtime?.status, 'running');
    assert.ok((await engine.tokenize({ model: 'tiny', text: 'a' })).tokens.length > 0);
    for (let step = await stream.next(); step.done !== true; step = await stream.next()) {
      assert.notEqual(step.value.type, 'error');
    }
  })()]);
  assert.equal(order.length, 4);
});

test('lesson 29: what is exported is there, what is not there is not exported', async (t) => {
  const engine = await makeTinyEngine(t);
  for (const name of ['close', 'getBatchQueueStats', 'preload', 'predict']) {
    assert.ok(!(name in engine), name);
  }
  assert.ok(engine instanceof Engine);
});

test('lesson 31: streams run side by side; none waits for another to end', async (t) => {
  const config = { stream_registry: { max_unacked_chunks: 2 } };
  const engine = await makeTinyEngine(t, { config });
  const streams = Array.from({ length: 16 }, (_, n) => engine.createGenerator({
    model: 'tiny', prompt: `number ${n}`, maxTokens: 100, temperature: 0, ignoreEos: true,
  }));
  // None has been read to its end, and none can have come to it: each has two tokens of credit.
  const firsts = await Promise.all(streams.map((stream) => stream.next()));
  assert.ok(firsts.every((step) => step.value?.type === 'token'));
  assert.equal(engine.getStreamMetrics().activeStreams, 16);
  await Promise.all(streams.map((stream) => stream.return()));
  await eventually('all are over', () => engine.getStreamMetrics().activeStreams === 0);
});

test('lesson 33: waiting, prompt, token and whole have times of their own', async (t) => {
  const engine = await makeTinyEngine(t);
  await engine.generate({ model: 'tiny', prompt: 'a b c', maxTokens: 8, ignoreEos: true });
  const { engine: metrics } = await engine.getTelemetryReport();
  for (const name of ['queue', 'request_prefill', 'inter_token', 'ttft', 'generate']) {
    const metric = metrics[name] as { kind: string; unit: string; count: number };
    assert.equal(metric.kind, 'histogram', name);
    assert.equal(metric.unit, 'ms', name);
    assert.ok(metric.count > 0, name);
  }
});

test('lesson 45: the tests use the real runtime, and a program needs little memory', async (t) => {
  const engine = makeEngine(t);
  await engine.loadModel({ model: 'tiny', localPath: tinyModel() });
  const params = { model: 'tiny', prompt: 'a', maxTokens: 300, ignoreEos: true };
  const run = async (): Promise<void> => {
    for await (const chunk of engine.createGenerator(params)) assert.notEqual(chunk.type, 'error');
  };
  for (let n = 0; n < 20; n += 1) await run();
  const { gc } = globalThis as { gc?: () => void };
  gc?.();
  const before = process.memoryUsage().heapUsed;
  for (let n = 0; n < 20; n += 1) await run();
  gc?.();
  await sleep(0);
  const grown = process.memoryUsage().heapUsed - before;
  assert.ok(grown < 64 * 1024 * 1024, `${grown} bytes more`);
});
