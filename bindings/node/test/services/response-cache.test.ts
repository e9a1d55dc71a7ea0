import assert from 'node:assert/strict';
import { test } from 'node:test';

import { ResponseCache } from '../../src/services/response-cache.js';
import { FakeClock } from './fake-clock.js';

const SIZE = { tokens: 10, bytes: 100 };

test('hits and misses are counted; the least recently used goes first', () => {
  const cache = new ResponseCache<string>({ maxEntries: 2 });
  cache.set('a', 'A', 'm', SIZE);
  cache.set('b', 'B', 'm', SIZE);
  assert.equal(cache.get('a'), 'A');
  cache.set('c', 'C', 'm', SIZE);
  assert.equal(cache.get('b'), undefined);
  assert.equal(cache.get('a'), 'A');
  assert.equal(cache.get('c'), 'C');
  assert.deepEqual(cache.stats(),
    { entries: 2, tokens: 20, bytes: 200, hits: 3, misses: 1, evictions: 1, hitRate: 0.75 });
});

test('bounds of tokens and bytes hold; what is larger than the cache is not kept', () => {
  const cache = new ResponseCache<string>({ maxTokens: 25, maxBytes: 1000 });
  for (const key of ['a', 'b', 'c']) cache.set(key, key, 'm', SIZE);
  assert.deepEqual([cache.stats().entries, cache.stats().tokens], [2, 20]);
  cache.set('large', 'x', 'm', { tokens: 1, bytes: 1001 });
  assert.equal(cache.get('large'), undefined);
  assert.equal(cache.stats().entries, 2, 'and drives nothing out');
  cache.set('c', 'C', 'm', { tokens: 20, bytes: 1000 });
  assert.deepEqual([cache.stats().entries, cache.stats().bytes], [1, 1000]);
  assert.equal(cache.get('c'), 'C');
});

test('an entry lives its time', async () => {
  const clock = new FakeClock();
  const cache = new ResponseCache<string>({ ttlMs: 1000, clock });
  cache.set('a', 'A', 'm', SIZE);
  await clock.advance(1000);
  assert.equal(cache.get('a'), 'A');
  await clock.advance(1);
  assert.equal(cache.get('a'), undefined);
  assert.equal(cache.stats().entries, 0);
  cache.set('b', 'B', 'm', SIZE);
  await clock.advance(2000);
  cache.set('c', 'C', 'm', SIZE); // takes the old one away
  assert.equal(cache.stats().entries, 1);
});

test('a model that goes takes its answers along', () => {
  const cache = new ResponseCache<string>();
  cache.set('a', 'A', 'one', SIZE);
  cache.set('b', 'B', 'two', SIZE);
  cache.clearGroup('one');
  assert.equal(cache.get('a'), undefined);
  assert.equal(cache.get('b'), 'B');
  cache.clear();
  assert.deepEqual([cache.stats().entries, cache.stats().bytes, cache.stats().tokens], [0, 0, 0]);
});

test('setting again replaces', () => {
  const cache = new ResponseCache<string>();
  cache.set('a', 'A', 'm', SIZE);
  cache.set('a', 'AA', 'm', { tokens: 1, bytes: 2 });
  assert.equal(cache.get('a'), 'AA');
  assert.deepEqual([cache.stats().entries, cache.stats().bytes, cache.stats().evictions], [1, 2, 0]);
});
