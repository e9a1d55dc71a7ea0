import assert from 'node:assert/strict';
import { test } from 'node:test';

import { Coalescer, type CoalescerOptions } from '../../src/services/coalescer.js';
import { canonical, fingerprint, isDeterministic } from '../../src/services/fingerprint.js';
import { FakeClock, settled } from './fake-clock.js';

function setUp(options: Partial<CoalescerOptions> = {}) {
  const clock = new FakeClock();
  const runs: { signal: AbortSignal; end: (value: string) => void; fail: (e: Error) => void }[] = [];
  const coalescer = new Coalescer({
    clock, cancelledError: () => new Error('cancelled'), ...options,
  });
  const run = (key: string, signal?: AbortSignal) => coalescer.run(key,
    (own) => new Promise<string>((resolve, reject) => {
      runs.push({ signal: own, end: resolve, fail: reject });
    }), signal);
  return { clock, coalescer, run, runs };
}

test('identical calls under way share one execution; later ones have their own', async () => {
  const { coalescer, run, runs } = setUp();
  const calls = [run('a'), run('a'), run('b')];
  assert.equal(runs.length, 2);
  runs[0]?.end('A');
  runs[1]?.end('B');
  assert.deepEqual(await Promise.all(calls), ['A', 'A', 'B']);
  const next = run('a');
  assert.equal(runs.length, 3);
  runs[2]?.end('A again');
  assert.equal(await next, 'A again');
  await settled();
  assert.deepEqual(coalescer.stats(), { requests: 4, executions: 3, coalesced: 1, inFlight: 0 });
});

test('an error is the error of all, and is not kept', async () => {
  const { run, runs } = setUp();
  const calls = Promise.allSettled([run('a'), run('a')]);
  runs[0]?.fail(new Error('broken'));
  for (const result of await calls) assert.match(String(Object.values(result)[1]), /broken/);
  void run('a');
  assert.equal(runs.length, 2);
});

test('one caller may leave; when all have left the execution is aborted', async () => {
  const { run, runs } = setUp();
  const [first, second] = [new AbortController(), new AbortController()];
  const a = run('a', first.signal);
  const b = run('a', second.signal);
  first.abort();
  await assert.rejects(a, /cancelled/);
  assert.equal(runs[0]?.signal.aborted, false);
  second.abort();
  await assert.rejects(b, /cancelled/);
  assert.equal(runs[0]?.signal.aborted, true);
  void run('a');
  assert.equal(runs.length, 2, 'nobody joins what is being aborted');
  await assert.rejects(run('a', first.signal), /cancelled/);
});

test('one caller without a signal keeps the execution', async () => {
  const { run, runs } = setUp();
  const leaving = new AbortController();
  const a = run('a', leaving.signal);
  const b = run('a');
  leaving.abort();
  await assert.rejects(a, /cancelled/);
  assert.equal(runs[0]?.signal.aborted, false);
  runs[0]?.end('A');
  assert.equal(await b, 'A');
});

test('bounds: subscribers, age, entries; off means off', async () => {
  const few = setUp({ maxSubscribers: 2 });
  for (let i = 0; i < 3; i++) void few.run('a');
  assert.equal(few.runs.length, 2);

  const old = setUp({ windowMs: 100 });
  void old.run('a');
  await old.clock.advance(101);
  void old.run('a');
  assert.equal(old.runs.length, 2);

  const full = setUp({ maxEntries: 1 });
  for (const key of ['a', 'b', 'b', 'a']) void full.run(key);
  assert.equal(full.runs.length, 3, 'b is not shared, a is');

  const off = setUp({ enabled: false });
  for (let i = 0; i < 2; i++) void off.run('a');
  assert.equal(off.runs.length, 2);
  assert.equal(off.coalescer.stats().inFlight, 0);
});

test('a fingerprint does not depend on the order of fields and tells all else apart', () => {
  assert.equal(fingerprint({ a: 1, b: [1, { c: 2, d: undefined }] }),
    fingerprint({ b: [1, { c: 2 }], a: 1 }));
  const different = [{ a: 1 }, { a: '1' }, { a: [1] }, { a: null }, {}, { a: { 1: 1 } }, { b: 1 }];
  assert.equal(new Set(different.map(fingerprint)).size, different.length);
  assert.equal(canonical({ b: 'x', a: [true, null] }), '{"a":[true,null],"b":"x"}');
  assert.throws(() => fingerprint({ a: NaN }), /no fingerprint of NaN/);
  assert.throws(() => fingerprint([() => 1]), /no fingerprint of a function/);
});

test('greedy and seeded requests are deterministic, others not', () => {
  assert.equal(isDeterministic({ temperature: 0 }), true);
  assert.equal(isDeterministic({ temperature: 0.7, seed: 0 }), true);
  assert.equal(isDeterministic({ temperature: 0.7 }), false);
  assert.equal(isDeterministic({}), false);
});
