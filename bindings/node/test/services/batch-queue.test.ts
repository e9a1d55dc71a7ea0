import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  type BatchDispatch, type BatchOutcome, BatchQueue, type BatchQueueOptions,
} from '../../src/services/batch-queue.js';
import { BatchQueues } from '../../src/services/batch-queues.js';
import { FakeClock, settled } from './fake-clock.js';

interface Sent {
  requests: string[];
  isBatch: boolean;
  answer: (outcomes?: BatchOutcome<string>[]) => Promise<void>;
  fail: (error: Error) => Promise<void>;
}

/** A queue of texts whose answers the test gives. An answer of a text is the text, doubled. */
function setUp(options: Partial<BatchQueueOptions<string, string>> = {}) {
  const clock = new FakeClock();
  const sent: Sent[] = [];
  const send = (requests: string[], isBatch: boolean) =>
    new Promise<BatchOutcome<string>[]>((resolve, reject) => {
      const good = () => requests.map((text) => ({ ok: true as const, value: text + text }));
      sent.push({
        requests, isBatch,
        answer: (outcomes) => (resolve(outcomes ?? good()), settled()),
        fail: (error) => (reject(error), settled()),
      });
    });
  const queue = new BatchQueue<string, string>({
    name: 'double', clock,
    sendBatch: (requests) => send(requests, true),
    sendOne: async (request) => {
      const [outcome] = await send([request], false);
      if (!outcome?.ok) throw outcome?.error ?? new Error('no outcome');
      return outcome.value;
    },
    timeoutError: (ms) => new Error(`timed out after ${ms}ms`),
    cancelledError: () => new Error('cancelled'),
    ...options,
  });
  return { clock, queue, sent };
}

test('a lone request is sent at once, by the single verb (lesson 28)', async () => {
  const { clock, queue, sent } = setUp();
  const answer = queue.enqueue('a');
  await settled(); // no time has passed
  assert.equal(clock.now(), 0);
  assert.deepEqual(sent.map(({ requests, isBatch }) => [requests, isBatch]), [[['a'], false]]);
  await sent[0]?.answer();
  assert.equal(await answer, 'aa');
  assert.equal(clock.pending, 0);
  assert.equal(queue.stats().fallbacks, 1);
});

test('calls issued together travel together', async () => {
  const { queue, sent } = setUp();
  const answers = Promise.all(['a', 'b', 'c'].map((text) => queue.enqueue(text)));
  await settled();
  assert.deepEqual(sent.map((one) => one.requests), [['a', 'b', 'c']]);
  await sent[0]?.answer();
  assert.deepEqual(await answers, ['aa', 'bb', 'cc']);
  const { batches, requests, efficiency, queueSize } = queue.stats();
  assert.deepEqual({ batches, requests, efficiency, queueSize },
    { batches: 1, requests: 3, efficiency: 3, queueSize: 0 });
});

test('a hundred calls are five messages of twenty', async () => {
  const { queue, sent } = setUp();
  const answers = Array.from({ length: 100 }, (_, i) => queue.enqueue(String(i)));
  await settled();
  assert.deepEqual(sent.map((one) => one.requests.length), [20, 20, 20, 20, 20]);
  for (const one of sent) await one.answer();
  assert.equal((await Promise.all(answers))[99], '9999');
});

test('a hundred calls are five messages when the size has shrunk and another call ends, too',
  async () => {
    const { clock, queue, sent } = setUp({ targetBatchTimeMs: 10 });
    while (queue.stats().currentMaxBatchSize > 1) {
      const pair = [queue.enqueue('a'), queue.enqueue('b')];
      await settled();
      await clock.advance(200);
      for (const one of sent.splice(0)) await one.answer();
      await Promise.all(pair);
    }
    const lone = queue.enqueue('lone').then(() => // the queue has not yet looked at its end
      Promise.all(Array.from({ length: 100 }, (_, i) => queue.enqueue(String(i)))));
    await settled();
    await sent.splice(0)[0]?.answer();
    assert.deepEqual(sent.map((one) => one.requests.length), [20, 20, 20, 20, 20]);
    for (const one of sent) await one.answer();
    assert.equal((await lone)[99], '9999');
  });

test('what comes while a batch is under way leaves when that ends (lesson 27)', async () => {
  const { clock, queue, sent } = setUp();
  const first = queue.enqueue('a');
  await settled();
  const second = queue.enqueue('b');
  const third = queue.enqueue('c');
  await settled();
  assert.equal(sent.length, 1, 'they wait: something is under way');
  await sent[0]?.answer();
  assert.equal(clock.now(), 0, 'no timer was needed');
  assert.deepEqual(sent[1]?.requests, ['b', 'c']);
  await sent[1]?.answer();
  assert.deepEqual(await Promise.all([first, second, third]), ['aa', 'bb', 'cc']);
});

test('behind a batch that does not end nothing waits longer than the interval', async () => {
  const { clock, queue, sent } = setUp({ flushIntervalMs: 2 });
  void queue.enqueue('stuck');
  await settled();
  const second = queue.enqueue('b');
  await clock.advance(1.9);
  assert.equal(sent.length, 1);
  await clock.advance(0.2);
  assert.deepEqual(sent[1]?.requests, ['b']);
  await sent[1]?.answer();
  assert.equal(await second, 'bb');
  // The same once more: the timer is armed anew.
  const third = queue.enqueue('c');
  await clock.advance(2.1);
  await sent[2]?.answer();
  assert.equal(await third, 'cc');
});

test('a full batch does not wait for the one under way', async () => {
  const { queue, sent } = setUp({ maxBatchSize: 2 });
  void queue.enqueue('stuck');
  await settled();
  const pair = Promise.all([queue.enqueue('b'), queue.enqueue('c')]);
  await settled();
  assert.deepEqual(sent[1]?.requests, ['b', 'c']);
  await sent[1]?.answer();
  assert.deepEqual(await pair, ['bb', 'cc']);
});

test('a queue in front of eight batches that do not end still ends by deadlines', async () => {
  const { clock, queue, sent } = setUp({ maxBatchSize: 1, timeoutMs: 1000 });
  const results = Promise.allSettled(Array.from({ length: 20 }, (_, i) => queue.enqueue(`${i}`)));
  await settled();
  assert.equal(sent.length, 8);
  assert.equal(queue.stats().queueSize, 12);
  await clock.advance(1000);
  for (const result of await results) {
    assert.equal(result.status, 'rejected');
    assert.match(String((result as PromiseRejectedResult).reason), /timed out after 1000ms/);
  }
  for (const one of sent) await one.answer(); // late answers go nowhere
  const next = queue.enqueue('next');
  await settled();
  await sent.at(-1)?.answer();
  assert.equal(await next, 'nextnext');
});

test('an item past its deadline fails alone, queued or under way', async () => {
  const { clock, queue, sent } = setUp({ flushIntervalMs: 1e9 });
  const a = queue.enqueue('a', { timeoutMs: 50 });
  const b = queue.enqueue('b');
  await settled();
  const queued = queue.enqueue('c', { timeoutMs: 20 });
  const watched = Promise.allSettled([a, queued]);
  await clock.advance(60);
  const [first, second] = await watched;
  assert.match(String((first as PromiseRejectedResult).reason), /timed out after 50ms/);
  assert.match(String((second as PromiseRejectedResult).reason), /timed out after 20ms/);
  await sent[0]?.answer();
  assert.equal(await b, 'bb');
  assert.equal(sent.length, 1, 'what was given up is not sent');
});

test('each item has its own error (lesson 37)', async () => {
  const { queue, sent } = setUp();
  const both = Promise.allSettled([queue.enqueue('a'), queue.enqueue('b')]);
  await settled();
  const error = Object.assign(new Error('no such model'), { code: 'ModelNotLoaded' });
  await sent[0]?.answer([{ ok: false, error }, { ok: true, value: 'B' }]);
  const [a, b] = await both;
  assert.equal((a as PromiseRejectedResult).reason, error);
  assert.deepEqual(b, { status: 'fulfilled', value: 'B' });
});

test('a batch that fails as a whole, or has too few answers, fails its items only', async () => {
  const { queue, sent } = setUp();
  const broken = Promise.allSettled([queue.enqueue('a'), queue.enqueue('b')]);
  await settled();
  await sent[0]?.fail(new Error('pipe'));
  for (const result of await broken) assert.match(String(Object.values(result)[1]), /pipe/);
  const short = Promise.allSettled([queue.enqueue('c'), queue.enqueue('d')]);
  await settled();
  await sent[1]?.answer([{ ok: true, value: 'C' }]);
  for (const result of await short) {
    assert.match(String(Object.values(result)[1]), /double: 1 answers to 2 requests/);
  }
  const next = queue.enqueue('e');
  await settled();
  await sent[2]?.answer();
  assert.equal(await next, 'ee');
});

test('a signal takes an item out of the queue, or away from its answer', async () => {
  const { clock, queue, sent } = setUp({ flushIntervalMs: 1e9 });
  const [inFlight, queued] = [new AbortController(), new AbortController()];
  const a = queue.enqueue('a', { signal: inFlight.signal });
  await settled();
  const b = queue.enqueue('b', { signal: queued.signal });
  const both = Promise.allSettled([a, b]);
  inFlight.abort();
  queued.abort();
  for (const result of await both) assert.match(String(Object.values(result)[1]), /cancelled/);
  await assert.rejects(queue.enqueue('c', { signal: queued.signal }), /cancelled/);
  await sent[0]?.answer();
  assert.equal(sent.length, 1);
  assert.equal(clock.pending, 0);
});

test('cleanup rejects all that waits and all that is under way; the queue goes on', async () => {
  const { clock, queue, sent } = setUp();
  const a = queue.enqueue('a');
  await settled();
  const both = Promise.allSettled([a, queue.enqueue('b')]);
  queue.cleanup(new Error('shut down'));
  for (const result of await both) assert.match(String(Object.values(result)[1]), /shut down/);
  assert.equal(clock.pending, 0);
  const next = queue.enqueue('c');
  await sent[0]?.answer();
  await sent[1]?.answer();
  assert.equal(await next, 'cc');
});

test('cleanup between enqueue and its flush leaves nothing to send', async () => {
  const { queue, sent } = setUp();
  const a = queue.enqueue('a');
  queue.cleanup(new Error('shut down'));
  await assert.rejects(a, /shut down/);
  await settled();
  assert.equal(sent.length, 0);
  await queue.flush();
});

test('flush resolves when nothing waits or is under way', async () => {
  const { queue, sent } = setUp({ flushIntervalMs: 1e9 });
  void queue.enqueue('a');
  await settled();
  void queue.enqueue('b');
  let isFlushed = false;
  const flushed = queue.flush().then(() => { isFlushed = true; });
  assert.deepEqual(sent.map((one) => one.requests), [['a'], ['b']], 'sent at once');
  await sent[0]?.answer();
  assert.equal(isFlushed, false);
  await sent[1]?.answer();
  await flushed;
});

test('a flush in whose middle items are given up resolves, too', async () => {
  const { clock, queue } = setUp({ maxBatchSize: 1, timeoutMs: 10 });
  const all = Promise.allSettled(Array.from({ length: 9 }, (_, i) => queue.enqueue(`${i}`)));
  const { sent } = setUp();
  assert.equal(sent.length, 0);
  await settled();
  await clock.advance(10);
  await all;
  assert.equal(queue.stats().queueSize, 0);
});

test('high priority leaves first, low last; without priorities in order', async () => {
  for (const priorityQueue of [true, false]) {
    const { queue, sent } = setUp({ priorityQueue });
    void queue.enqueue('low', { priority: 'low' });
    void queue.enqueue('normal');
    void queue.enqueue('high', { priority: 'high' });
    await settled();
    assert.deepEqual(sent[0]?.requests,
      priorityQueue ? ['high', 'normal', 'low'] : ['low', 'normal', 'high']);
  }
});

test('without the batch verb, or switched off, each request is sent alone', async () => {
  for (const options of [{ canBatch: () => false }, { enabled: false }]) {
    const { queue, sent } = setUp(options);
    const both = Promise.all([queue.enqueue('a'), queue.enqueue('b')]);
    await settled();
    assert.deepEqual(sent.map((one) => one.isBatch), [false, false]);
    for (const one of sent) await one.answer();
    assert.deepEqual(await both, ['aa', 'bb']);
    const { batches, fallbacks } = queue.stats();
    assert.deepEqual({ batches, fallbacks }, { batches: 0, fallbacks: 2 });
  }
});

test('a batch is bounded in bytes; what is larger goes alone', async () => {
  const { queue, sent } = setUp({ sizeOf: (text) => text.length, maxBatchBytes: 10 });
  for (const text of ['1234', '12345', '12', '12345678901234', '1']) void queue.enqueue(text);
  await settled();
  assert.deepEqual(sent.map((one) => one.requests),
    [['1234', '12345'], ['12'], ['12345678901234'], ['1']]);
});

test('the size adapts: slow batches shrink it, quick ones let it grow, within 1 and the limit',
  async () => {
    const { clock, queue, sent } = setUp({ maxBatchSize: 20, targetBatchTimeMs: 10 });
    const round = async (ms: number) => {
      const pair = [queue.enqueue('a'), queue.enqueue('b')];
      await settled();
      await clock.advance(ms);
      for (const one of sent.splice(0)) await one.answer();
      await Promise.all(pair);
    };
    const rounds = async (n: number, ms: number, restMs = 0) => {
      for (let i = 0; i < n; i++) {
        await round(ms);
        await clock.advance(restMs);
      }
      return queue.stats().currentMaxBatchSize;
    };
    assert.equal(await rounds(9, 100), 20, 'nine samples do not tell');
    assert.equal(await rounds(1, 100), 14, '100 of 10 ms: times 0.7');
    assert.equal(await rounds(10, 13, 100), 11, '13 of 10 ms: times 0.85');
    assert.equal(await rounds(10, 10, 100), 11, 'on target: stays');
    assert.equal(await rounds(10, 7, 100), 13, '7 of 10 ms: times 1.15');
    assert.equal(await rounds(10, 1, 100), 20, '1 of 10 ms: times 1.5');
    assert.equal(await rounds(200, 1, 100), 64, 'what the runtime accepts');
    assert.equal(await rounds(400, 100), 1);
    assert.ok(await rounds(20, 1, 1000) > 1, 'one by one is quick: grows again');
    const { initialMaxBatchSize, adaptiveSizingEnabled } = queue.stats();
    assert.deepEqual([initialMaxBatchSize, adaptiveSizingEnabled], [20, true]);
  });

test('the size decides at most once a second, and stays when adaptive sizing is off', async () => {
  for (const adaptiveSizing of [true, false]) {
    const { clock, queue, sent } = setUp({ adaptiveSizing });
    for (let i = 0; i < 60; i++) {
      const pair = [queue.enqueue('a'), queue.enqueue('b')];
      await settled();
      await clock.advance(20);
      await sent.at(-1)?.answer();
      await Promise.all(pair);
    }
    // 1.2 s at twice the target: one decision.
    assert.equal(queue.stats().currentMaxBatchSize, adaptiveSizing ? 14 : 20);
  }
});

test('figures: batch times, sizes, waits; reset forgets them', async () => {
  const { clock, queue, sent } = setUp({ flushIntervalMs: 4 });
  for (const ms of [2, 6]) {
    const pair = [queue.enqueue('a'), queue.enqueue('b')];
    await settled();
    await clock.advance(ms);
    await sent.at(-1)?.answer();
    await Promise.all(pair);
  }
  void queue.enqueue('stuck');
  await settled();
  const late = [queue.enqueue('c'), queue.enqueue('d')];
  await clock.advance(4);
  await sent.at(-1)?.answer();
  await Promise.all(late);
  const { performance } = queue.stats();
  assert.deepEqual({ ...performance, avgQueueLatency: 0, avgBatchTime: 0 }, {
    avgBatchTime: 0, p50BatchTime: 2, p95BatchTime: 6, p99BatchTime: 6, avgBatchSize: 2,
    avgQueueLatency: 0, p95QueueLatency: 4, samplesRecorded: 3,
  });
  assert.ok(Math.abs(performance.avgBatchTime - 8 / 3) < 1e-9);
  assert.ok(Math.abs(performance.avgQueueLatency - 8 / 7) < 1e-9);
  queue.resetStats();
  const { requests, batches, fallbacks, efficiency, performance: after } = queue.stats();
  assert.deepEqual([requests, batches, fallbacks, efficiency, after.samplesRecorded],
    [0, 0, 0, 0, 0]);
});

test('each batch of several is told', async () => {
  const told: BatchDispatch[] = [];
  const { clock, queue, sent } = setUp({ onDispatched: (dispatch) => told.push(dispatch) });
  void queue.enqueue('alone');
  await settled();
  const pair = [queue.enqueue('a', { priority: 'high' }), queue.enqueue('b')];
  await clock.advance(2);
  await clock.advance(5);
  await sent[1]?.answer();
  await Promise.all(pair);
  assert.deepEqual(told, [{
    partitionKey: 'double', batchSize: 2, durationMs: 5, queueWaitAvgMs: 2, queueWaitP95Ms: 2,
    priorityMix: { high: 1, normal: 1, low: 0 }, targetBatchSize: 20,
  }]);
});

test('the two queues of the engine report under its names', async () => {
  const [tokenize, checkDraft] = [setUp(), setUp()];
  const queues = new BatchQueues(tokenize.queue, checkDraft.queue);
  const all = [...'abc'].map((text) => tokenize.queue.enqueue(text));
  all.push(checkDraft.queue.enqueue('x'));
  const flushed = queues.flush();
  await settled();
  await tokenize.sent[0]?.answer();
  await checkDraft.sent[0]?.answer();
  await Promise.all([...all, flushed]);
  const stats = queues.stats();
  assert.deepEqual(
    [stats.tokenizeBatches, stats.tokenizeRequests, stats.tokenizeFallbacks,
      stats.tokenizeEfficiency, stats.tokenizeQueueSize],
    [1, 3, 0, 3, 0]);
  assert.deepEqual(
    [stats.checkDraftBatches, stats.checkDraftRequests, stats.checkDraftFallbacks,
      stats.checkDraftEfficiency, stats.checkDraftQueueSize],
    [0, 1, 1, 1, 0]);
  assert.equal(stats.tokenizePerformance.samplesRecorded, 1);
  assert.equal(stats.checkDraftPerformance.samplesRecorded, 0);
  queues.resetStats();
  assert.equal(queues.stats().tokenizeRequests + queues.stats().checkDraftRequests, 0);
  const rejected = Promise.allSettled([tokenize.queue.enqueue('a'), checkDraft.queue.enqueue('b')]);
  queues.cleanup(new Error('gone'));
  for (const result of await rejected) assert.equal(result.status, 'rejected');
});
