// Streams on the real runtime: whose chunks are whose, who waits for whom, and how each one ends.
import assert from 'node:assert/strict';
import { getEventListeners } from 'node:events';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Engine, GeneratorChunk, GeneratorParams } from '../src/index.js';
import { collectChunks } from '../src/index.js';
import { eventually, failure, makeTinyEngine, tinyModel } from './support.js';

const LONG: GeneratorParams = {
  model: 'tiny', prompt: 'Hello', maxTokens: 400, temperature: 0, ignoreEos: true,
};
/** More than the runtime has ready before its client has taken some: it cannot be over. */
const SLOW = { stream_registry: { max_unacked_chunks: 4 } };

async function take(stream: AsyncGenerator<GeneratorChunk, void>, n: number): Promise<string> {
  let text = '';
  for (let i = 0; i < n; i += 1) {
    const { value } = await stream.next();
    assert.ok(value?.type === 'token', JSON.stringify(value));
    text += value.token;
  }
  return text;
}

async function rest(stream: AsyncGenerator<GeneratorChunk, void>): Promise<GeneratorChunk[]> {
  const chunks: GeneratorChunk[] = [];
  for (let step = await stream.next(); step.done !== true; step = await stream.next()) {
    chunks.push(step.value);
  }
  return chunks;
}

const isIdle = (engine: Engine) => async (): Promise<boolean> => {
  const { generation } = await engine.getTelemetryReport();
  return engine.getStreamMetrics().activeStreams === 0 && generation.calls >= 0;
};

test('lesson 2: the whole text so far is made here, and only when asked for', async (t) => {
  const engine = await makeTinyEngine(t);
  let text = '';
  for await (const chunk of engine.createGenerator({ ...LONG, maxTokens: 8 },
    { cumulativeText: true })) {
    if (chunk.type !== 'token') continue;
    text += chunk.token;
    assert.equal(chunk.cumulativeText, text);
  }
  const [first] = await collectChunks(engine, { ...LONG, maxTokens: 1 });
  assert.ok(first && !('cumulativeText' in first));
});

test('lesson 7: leaving, aborting and limits end the work in the runtime, too', async (t) => {
  const engine = await makeTinyEngine(t, { config: SLOW });
  const states = async (): Promise<number> => {
    const health = await engine.healthCheck();
    return health.activeStreams;
  };
  const left = engine.createGenerator(LONG);
  await take(left, 3);
  assert.equal(await states(), 1);
  assert.deepEqual(await left.return(), { done: true, value: undefined });
  const controller = new AbortController();
  const aborted = engine.createGenerator(LONG, { signal: controller.signal });
  await take(aborted, 3);
  controller.abort();
  const limited = engine.createGenerator(LONG, { timeoutMs: 50 });
  await take(limited, 1);
  const late = await eventually('the limit', async () => {
    const { value } = await limited.next();
    return value?.type === 'error' ? value : undefined;
  });
  assert.equal(late.error.code, 'Timeout');
  assert.match(late.error.message, /timed out after 50ms/);
  const cancelled = engine.createGenerator(LONG, { streamId: 'mine' });
  await take(cancelled, 1);
  assert.equal(await engine.cancel('mine'), true);
  assert.equal(await engine.cancel('mine'), false);
  assert.equal(await engine.cancel('never'), false);
  await eventually('all places are free', isIdle(engine));
  const telemetry = await engine.getTelemetryReport();
  // The runtime keeps the limit, too: whose clock was first decides what it calls the end.
  const ended = ['requests_cancelled', 'requests_failed']
    .map((name) => (telemetry.engine[name] as { value: number }).value);
  assert.equal((ended[0] ?? 0) + (ended[1] ?? 0), 4, ended.join());
});

test('lesson 10: a stream that is left early gives nothing to any other', async (t) => {
  const engine = await makeTinyEngine(t);
  const texts = new Map<string, string>();
  for (const prompt of ['a', 'b', 'c', 'd']) {
    texts.set(prompt, await engine.generate({ ...LONG, prompt, maxTokens: 40 }));
  }
  await Promise.all(Array.from({ length: 60 }, async (_, n) => {
    const prompt = 'abcd'[n % 4] as string;
    const stream = engine.createGenerator({ ...LONG, prompt, maxTokens: 40 });
    if (n % 3 === 0) {
      const text = await take(stream, 1 + n % 7);
      assert.ok(texts.get(prompt)?.startsWith(text));
      await stream.return();
      return;
    }
    const chunks = await rest(stream);
    const text = chunks.map((chunk) => (chunk.type === 'token' ? chunk.token : '')).join('');
    assert.equal(text, texts.get(prompt));
    assert.equal(chunks.at(-1)?.type, 'metadata');
  }));
  await eventually('all places are free', isIdle(engine));
});

test('lesson 11: chunks are frozen and each is its own', async (t) => {
  const engine = await makeTinyEngine(t);
  const params = { ...LONG, maxTokens: 20, logprobs: true, topLogprobs: 2 };
  const chunks = await collectChunks(engine, params);
  assert.ok(chunks.every((chunk) => Object.isFrozen(chunk)));
  assert.equal(new Set(chunks).size, chunks.length);
  const [first, second] = chunks;
  assert.ok(first?.type === 'token' && second?.type === 'token');
  assert.throws(() => {
    (first as { token: string }).token = 'x';
  }, TypeError);
  assert.ok(new Set(chunks.map((chunk) => (chunk.type === 'token' ? chunk.tokenId : -1))).size > 3);
});

test('lesson 12: a slow reader rests its own stream in the runtime, and no other', async (t) => {
  const engine = await makeTinyEngine(t, { config: SLOW });
  const slow = engine.createGenerator(LONG);
  await take(slow, 1);
  const generated = async (): Promise<number> => {
    const { engine: metrics } = await engine.getTelemetryReport();
    return (metrics['tokens_generated'] as { value: number }).value;
  };
  for (let n = 0; n < 5; n += 1) {
    assert.equal((await engine.generate({ ...LONG, maxTokens: 50 })).length > 0, true);
  }
  // The others ran to their end (5 × 50); the slow one has what it took and what it may be ahead.
  const before = await generated();
  assert.ok(before <= 5 * 50 + 1 + 2 * 4, `${before} tokens`);
  assert.equal((await engine.healthCheck()).activeStreams, 1);
  const chunks = await rest(slow);
  const stats = chunks.at(-1);
  assert.ok(stats?.type === 'metadata');
  assert.equal(stats.stats.tokensGenerated, 400);
});

test('lesson 13: whatever goes wrong, the place is free again', async (t) => {
  const config = { stream_registry: { max_active_streams: 2 } };
  const engine = await makeTinyEngine(t, { config });
  const bad: (() => Promise<unknown>)[] = [
    () => failure(engine.generate({ ...LONG, model: 'odd' }), 'ModelNotLoaded'),
    () => failure(engine.generate({ ...LONG, prompt: 'x'.repeat(9000) }), 'GenerationError'),
    () => failure(engine.generate({ ...LONG, maxTokens: -1 }), 'InvalidParams'),
    () => failure(engine.generate(LONG, { timeoutMs: 99_999_999 as never }), 'InvalidParams'),
    () => failure(engine.generate(LONG, { timeoutMs: 80_000_000 }), 'InvalidParams'),
    () => failure(engine.generate(LONG, { signal: AbortSignal.abort() }), 'Cancelled'),
    () => failure(engine.generate(LONG, { timeoutMs: 1 }), 'Timeout'),
  ];
  for (let round = 0; round < 3; round += 1) for (const run of bad) await run();
  const unused = engine.createGenerator(LONG); // never started: costs nothing
  assert.deepEqual(await unused.return(), { done: true, value: undefined });
  assert.deepEqual(await unused.next(), { done: true, value: undefined });
  await eventually('all places are free', isIdle(engine));
  const metrics = engine.getStreamMetrics();
  assert.equal(metrics.waitingStreams, 0);
  assert.equal((await engine.generate({ ...LONG, maxTokens: 2 })).length > 0, true);
});

test('lesson 13: an end that races another is told once', async (t) => {
  const engine = await makeTinyEngine(t);
  const ends: string[] = [];
  engine.on('generation:completed', ({ streamId }) => ends.push(streamId));
  engine.on('error', ({ error }) => ends.push(`error ${error.code}`));
  let nEnds = 0;
  await Promise.all(Array.from({ length: 40 }, async (_, n) => {
    const controller = new AbortController();
    const stream = engine.createGenerator({ ...LONG, maxTokens: 10 },
      { streamId: `race-${n}`, signal: controller.signal });
    const all = rest(stream);
    await sleep(n % 8);
    controller.abort();
    const chunks = await all;
    const last = chunks.filter((chunk) => chunk.type !== 'token');
    assert.equal(last.length, 1);
    if (last[0]?.type === 'metadata') nEnds += 1;
    else assert.equal((last[0] as { error: { code: string } }).error.code, 'Cancelled');
    assert.equal(getEventListeners(controller.signal, 'abort').length, 0);
  }));
  assert.equal(ends.length, nEnds);
});

test('lesson 14: streams beyond the limit wait for their turn, within their limit', async (t) => {
  const engine = await makeTinyEngine(t, {
    config: { stream_registry: { max_active_streams: 2, max_unacked_chunks: 4,
      max_waiting_streams: 3 } },
  });
  const held = [engine.createGenerator(LONG), engine.createGenerator(LONG)];
  for (const stream of held) await take(stream, 1);
  const waiting = ['a', 'b'].map((prompt) => engine.generate({ ...LONG, prompt, maxTokens: 2 }));
  await failure(engine.generate(LONG, { timeoutMs: 20 }), 'Timeout');
  assert.equal(engine.getStreamMetrics().waitingStreams, 2);
  const third = engine.createGenerator(LONG);
  const abandoned = third.next();
  await failure(engine.generate(LONG), 'ServerError'); // too many wait
  await third.return();
  assert.equal((await abandoned).done, true);
  await held[0]?.return();
  assert.equal((await Promise.all(waiting)).length, 2);
  await held[1]?.return();
});

test('lesson 15: an abort is Cancelled, and all times are seconds', async (t) => {
  const engine = await makeTinyEngine(t, { config: SLOW });
  const controller = new AbortController();
  const stream = engine.createGenerator(LONG, { signal: controller.signal });
  await take(stream, 2);
  controller.abort('enough');
  const chunks = await rest(stream);
  const last = chunks.at(-1);
  assert.ok(last?.type === 'error');
  assert.equal(last.error.code, 'Cancelled');
  await failure(engine.generate(LONG, { signal: AbortSignal.abort() }), 'Cancelled');
  const later = new AbortController();
  const text = failure(engine.generate(LONG, { signal: later.signal }), 'Cancelled');
  setImmediate(() => later.abort());
  await text;
  const began = performance.now();
  const done = (await collectChunks(engine, { ...LONG, maxTokens: 30 })).at(-1);
  const seconds = (performance.now() - began) / 1000;
  assert.ok(done?.type === 'metadata');
  const { timeToFirstToken, totalTime, tokensPerSecond, tokensGenerated } = done.stats;
  assert.ok(totalTime !== undefined && totalTime > 0 && totalTime <= seconds);
  assert.ok(timeToFirstToken > 0 && timeToFirstToken <= totalTime);
  const expected = tokensGenerated / (totalTime - timeToFirstToken);
  assert.ok(Math.abs(tokensPerSecond / expected - 1) < 0.05, `${tokensPerSecond} ${expected}`);
});

test('lesson 17: the finish reason and the log-probability are those of the token', async (t) => {
  const engine = await makeTinyEngine(t);
  const params = { ...LONG, maxTokens: 5, logprobs: true, topLogprobs: 3 };
  const chunks = await collectChunks(engine, params);
  for (const chunk of chunks) {
    if (chunk.type !== 'token' || chunk.tokenId === undefined) continue;
    assert.equal(chunk.topLogprobs?.length, 3);
    // Greedy: the token is the likeliest one.
    assert.equal(chunk.logprob, chunk.topLogprobs?.[0]?.logprob);
    assert.ok((chunk.logprob ?? 1) <= 0);
  }
  const end = async (params: object): Promise<string | undefined> => {
    const last = (await collectChunks(engine, { ...LONG, ...params })).at(-1);
    return last?.type === 'metadata' ? last.stats.finishReason : undefined;
  };
  const ids = chunks.map((chunk) => (chunk.type === 'token' ? chunk.tokenId : undefined));
  assert.equal(await end({ maxTokens: 5 }), 'length');
  assert.equal(await end({ stopTokenIds: [ids[2]] }), 'stop');
});

test('lesson 19: no chunk holds half a character', async (t) => {
  const engine = await makeTinyEngine(t);
  // Random bytes: what is shown must be what the whole text would show.
  const params = { ...LONG, maxTokens: 60, temperature: 1.5, seed: 7 };
  const chunks = await collectChunks(engine, params);
  const text = chunks.map((chunk) => (chunk.type === 'token' ? chunk.token : '')).join('');
  const ids = chunks.flatMap((chunk) => (chunk.type === 'token' ? chunk.tokenId ?? [] : []));
  assert.equal(ids.length, 60);
  assert.equal(text, await engine.generate(params));
});

test('a live stream id is refused to another, and free again afterwards', async (t) => {
  const engine = await makeTinyEngine(t, { config: SLOW });
  const first = engine.createGenerator(LONG, { streamId: 'one' });
  await take(first, 1);
  await failure(engine.generate(LONG, { streamId: 'one' }), 'InvalidParams');
  await take(first, 10); // it does not notice
  await first.return();
  const text = await engine.generate({ ...LONG, maxTokens: 3 }, { streamId: 'one' });
  assert.ok(text.length >= 0);
});

test('several waits for one stream are served in their order', async (t) => {
  const engine = await makeTinyEngine(t);
  const stream = engine.createGenerator({ ...LONG, maxTokens: 3 });
  const steps = await Promise.all(Array.from({ length: 6 }, () => stream.next()));
  assert.deepEqual(steps.map((step) => (step.done === true ? 'end' : step.value.type)),
    ['token', 'token', 'token', 'metadata', 'end', 'end']);
});

test('the order of two models does not mix', async (t) => {
  const engine = await makeTinyEngine(t);
  await engine.loadModel({ model: 'other', localPath: tinyModel('qwen2') });
  const params = { ...LONG, maxTokens: 30 };
  const alone = [
    await engine.generate(params), await engine.generate({ ...params, model: 'other' })];
  const both = await Promise.all([
    engine.generate(params), engine.generate({ ...params, model: 'other' })]);
  assert.deepEqual(both, alone);
});
