import assert from 'node:assert/strict';
import { test } from 'node:test';

import { GenerationStatsCollector } from '../../src/services/generation-stats-collector.js';

function setUp(autoStart?: boolean) {
  const time = { ms: 5000 };
  const collector = new GenerationStatsCollector({
    now: () => time.ms, ...(autoStart === undefined ? {} : { autoStart }),
  });
  return { time, collector };
}

test('with autoStart the wait for the first token counts; all times are seconds (lesson 15)', () => {
  const { time, collector } = setUp();
  assert.equal(collector.isStarted, true);
  time.ms += 500;
  collector.update('a');
  time.ms += 250;
  collector.update('b');
  time.ms += 250;
  collector.update('c');
  collector.stop();
  time.ms += 9999;
  assert.deepEqual(collector.getStats(),
    { tokensGenerated: 3, tokensPerSecond: 6, timeToFirstToken: 0.5, totalTime: 1 });
  collector.update('late');
  assert.equal(collector.tokensGenerated, 3);
});

test('without autoStart the clock starts by start(), or by the first token', () => {
  const { time, collector } = setUp(false);
  assert.deepEqual([collector.isStarted, collector.totalTime, collector.timeToFirstToken],
    [false, 0, 0]);
  collector.stop();
  time.ms += 1000;
  collector.update('a');
  assert.deepEqual([collector.isStarted, collector.hasTokens, collector.timeToFirstToken],
    [true, true, 0]);
  collector.start();
  assert.equal(collector.hasTokens, false);
  time.ms += 200;
  collector.update('a');
  assert.equal(collector.timeToFirstToken, 0.2);
});

test('without tokens the time to the first is the total; the rate is 0', () => {
  const { time, collector } = setUp();
  time.ms += 3000;
  collector.stop();
  assert.deepEqual(collector.getStats(),
    { tokensGenerated: 0, tokensPerSecond: 0, timeToFirstToken: 3, totalTime: 3 });
});

test('reset is as constructed', () => {
  const { time, collector } = setUp();
  time.ms += 1000;
  collector.update('a');
  collector.stop();
  collector.reset();
  assert.deepEqual([collector.isStarted, collector.hasTokens, collector.totalTime],
    [true, false, 0]);
  const lazy = setUp(false).collector;
  lazy.update('a');
  lazy.reset();
  assert.equal(lazy.isStarted, false);
});
