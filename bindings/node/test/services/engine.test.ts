// Lesson 29: each service is reached through the public API, or is not advertised.
import assert from 'node:assert/strict';
import { test } from 'node:test';

import { GenerationStatsCollector } from '../../src/index.js';
import type { EngineClientError } from '../../src/index.js';
import {
  NOTHING, ScriptedTransport, eventually, failure, makeEngine, makeTinyEngine, tinyModel,
} from '../support.js';

const GREEDY = { model: 'tiny', prompt: 'a b', maxTokens: 6, temperature: 0, ignoreEos: true };

test('a hundred tokenize calls issued together are five messages; the same one by one a hundred',
  async (t) => {
    const engine = await makeTinyEngine(t, { config: { batch_queue: { adaptive_sizing: false } } });
    const texts = Array.from({ length: 100 }, (_, i) => `text ${i}`);
    const one = (text: string) => engine.tokenize({ model: 'tiny', text });
    const together = await Promise.all(texts.map(one));
    const stats = engine.getBatchStats();
    assert.deepEqual([stats?.tokenizeBatches, stats?.tokenizeRequests, stats?.tokenizeFallbacks,
      stats?.tokenizeEfficiency, stats?.tokenizeQueueSize], [5, 100, 0, 20, 0]);
    engine.resetBatchStats();
    const single = [];
    for (const text of texts) single.push(await one(text));
    assert.deepEqual(single, together);
    const after = engine.getBatchStats();
    assert.deepEqual([after?.tokenizeBatches, after?.tokenizeFallbacks], [0, 100]);
  });

const LOADED = { model_id: 'm', state: 'ready', type: 'text', draft: false, context_length: 512 };

test('each item of a batch has its own error, with its code (lesson 37)', async (t) => {
  const error = {
    code: -32003, message: 'cannot take this', data: { type: 'TokenizerError', kr_status: 1 },
  };
  const engine = makeEngine(t, {}, {
    runner: () => new ScriptedTransport(({ method }) => (method === 'load_model' ? LOADED
      : method === 'batch_tokenize' ? {
        results: [
          { success: true, result: { tokens: [1] }, error: null },
          { success: false, result: null, error },
        ],
      } : undefined)),
  });
  await engine.loadModel('m');
  const [good, bad] = await Promise.allSettled([
    engine.tokenize({ model: 'm', text: 'a' }), engine.tokenize({ model: 'm', text: 'b' }),
  ]);
  assert.equal(good.status, 'fulfilled');
  const { code, message, details } = (bad as PromiseRejectedResult).reason as EngineClientError;
  assert.deepEqual([code, message], ['TokenizerError', 'cannot take this']);
  assert.equal((details as { rpcCode: number }).rpcCode, -32003);
});

test('the batch queue checks drafts, too', async (t) => {
  const engine = await makeTinyEngine(t);
  await engine.loadDraftModel({ model: 'draft', localPath: tinyModel('llama_gqa4') });
  const reports = await Promise.all([
    engine.isDraftModelCompatible('tiny', 'draft'), engine.isDraftModelCompatible('tiny', 'draft'),
  ]);
  assert.deepEqual(reports[0], reports[1]);
  assert.equal(engine.getBatchStats()?.checkDraftRequests, 2);
});

test('flushBatches waits for all that was asked; shutdown rejects it (lesson 27)', async (t) => {
  const transports: ScriptedTransport[] = [];
  const engine = makeEngine(t, {}, {
    runner: () => {
      const transport = new ScriptedTransport(({ method }) => (
        method === 'load_model'
          ? LOADED
          : method === 'tokenize' || method === 'batch_tokenize' ? NOTHING : undefined));
      transports.push(transport);
      return transport;
    },
  });
  await engine.loadModel('m');
  const answered = engine.tokenize({ model: 'm', text: 'a' });
  const transport = await eventually('the call',
    () => transports.find((one) => one.of('tokenize').length === 1));
  let isFlushed = false;
  const flushed = engine.flushBatches().then(() => {
    isFlushed = true;
  });
  await new Promise((resolve) => {
    setImmediate(resolve);
  });
  assert.equal(isFlushed, false);
  transport?.say({ id: transport.of('tokenize')[0]?.id, result: { tokens: [1] } });
  assert.deepEqual((await answered).tokens, [1]);
  await flushed;
  const pending = Promise.all([0, 1, 2].map((i) =>
    failure(engine.tokenize({ model: 'm', text: `${i}` }))));
  await eventually('the batch', () => transport?.of('batch_tokenize').length === 1);
  await engine.shutdown();
  for (const error of await pending) {
    assert.ok(['Cancelled', 'TransportError'].includes(error.code), error.code);
  }
  assert.equal(engine.getBatchStats()?.tokenizeQueueSize, 0);
});

test('equal deterministic generations share one execution, and are kept when that is on',
  async (t) => {
    const engine = await makeTinyEngine(t, {
      config: { request_coalescing: { enabled: true }, prompt_cache: { enabled: true } },
    });
    const [a, b] = await Promise.all([engine.generate(GREEDY), engine.generate(GREEDY)]);
    assert.equal(a, b);
    assert.equal(await engine.generate(GREEDY), a);
    await engine.generate({ ...GREEDY, temperature: 1 }); // drawn anew each time
    await engine.generate({ ...GREEDY, temperature: 1 });
    const { coalescing, responseCache } = engine.getReuseStats();
    assert.deepEqual([coalescing.executions, coalescing.coalesced], [1, 1]);
    assert.deepEqual([responseCache.entries, responseCache.hits], [1, 1]);
    assert.equal((await engine.getTelemetryReport()).generation.calls, 3);
    await engine.unloadModel('tiny');
    assert.equal(engine.getReuseStats().responseCache.entries, 0);
  });

test('neither sharing nor keeping is on by itself', async (t) => {
  const engine = await makeTinyEngine(t);
  await Promise.all([engine.generate(GREEDY), engine.generate(GREEDY)]);
  const { coalescing, responseCache } = engine.getReuseStats();
  assert.deepEqual([coalescing.requests, responseCache.entries], [0, 0]);
  assert.equal((await engine.getTelemetryReport()).generation.calls, 2);
});

test('QoS: the report has what was generated; a policy acts', async (t) => {
  const engine = await makeTinyEngine(t, {
    config: {
      qos: {
        enabled: true, evaluation_interval_ms: 1,
        policies: [{ name: 'slow', metric: 'latency_p95', max: 0, action: 'alert' }],
      },
    },
  });
  assert.equal(engine.getQosReport().metrics.ttft, null);
  const violated = new Promise<string>((resolve) => {
    engine.once('qos:violation', ({ violation }) => resolve(violation.policy));
  });
  await engine.generate(GREEDY);
  assert.equal(await violated, 'slow');
  const { metrics, samples, actions } = engine.getQosReport();
  assert.equal(samples, 1);
  assert.ok(metrics.ttft !== null && metrics.ttft > 0 && metrics.error_rate === 0);
  assert.equal(actions, 1);
});

test('the collector is exported and agrees with the stream it watched', async (t) => {
  const engine = await makeTinyEngine(t);
  const collector = new GenerationStatsCollector();
  let said = 0;
  for await (const chunk of engine.createGenerator(GREEDY)) {
    if (chunk.type === 'token' && chunk.tokenId !== undefined) collector.update(chunk.token);
    if (chunk.type === 'metadata') said = chunk.stats.tokensGenerated;
  }
  collector.stop();
  const stats = collector.getStats();
  assert.equal(stats.tokensGenerated, said);
  assert.ok(stats.timeToFirstToken > 0 && stats.timeToFirstToken <= stats.totalTime);
});
