// The runtime dies; the host lives. What was pending fails with a code, what comes next works.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Parts } from '../src/core/parts.js';
import type { Engine, RuntimeStatus } from '../src/index.js';
import { KR, PACKAGE, eventually, failure, makeTinyEngine, tinyModel } from './support.js';

const LONG = { model: 'tiny', prompt: 'Hello', maxTokens: 400, temperature: 0, ignoreEos: true };
const SLOW = { stream_registry: { max_unacked_chunks: 4 } };

async function kill(engine: Engine): Promise<void> {
  process.kill((await engine.getRuntimeInfo()).pid as number, 'SIGKILL');
}

function isStopped(pid: number): boolean {
  return readdirSync(`/proc/${pid}/task`).every((thread) =>
    /\) T /.test(readFileSync(`/proc/${pid}/task/${thread}/stat`, 'utf8')));
}

/** From here on it answers nothing; with its few credits used up no stream was over before. */
async function freeze(engine: Engine): Promise<number> {
  const pid = (await engine.getRuntimeInfo()).pid as number;
  process.kill(pid, 'SIGSTOP');
  await eventually('all its threads have stopped', () => isStopped(pid));
  return pid;
}

test('lesson 35: a crash is announced at once, models come back, calls work', async (t) => {
  const engine = await makeTinyEngine(t, { config: SLOW });
  const before = await engine.generate({ ...LONG, maxTokens: 5 });
  const events: string[] = [];
  engine.on('runtime:status', ({ status }) => events.push(status));
  engine.on('model:invalidated', ({ modelId, reason }) => events.push(`${modelId} ${reason}`));
  engine.on('model:loaded', ({ modelId }) => events.push(`${modelId} loaded`));
  engine.on('error', ({ error, context }) => events.push(`${context} ${error.code}`));
  const stream = engine.createGenerator(LONG);
  await stream.next();
  const pid = await freeze(engine);
  const drained = (async () => {
    for (;;) if ((await stream.next()).done === true) return;
  })();
  process.kill(pid, 'SIGKILL');
  const error = await failure(drained, 'TransportError');
  assert.match(error.message, /SIGKILL|EPIPE/);
  // Nobody has asked for anything since: it comes back by itself.
  await eventually('the model is back', () => engine.getModelInfo('tiny')?.state === 'ready');
  assert.equal(await engine.generate({ ...LONG, maxTokens: 5 }), before);
  assert.notEqual((await engine.getRuntimeInfo()).pid, pid);
  assert.deepEqual(events, ['error', 'generation TransportError', 'tiny python_restart',
    'runtime TransportError', 'starting', 'ready', 'tiny loaded']);
  assert.equal((await engine.healthCheck()).stateConsistent, true);
});

test('every pending call of a killed runtime rejects with a code, ten times over', async (t) => {
  const engine = await makeTinyEngine(t, { config: SLOW });
  for (let round = 0; round < 10; round += 1) {
    const streams = [1, 2, 3].map(() => engine.createGenerator(LONG));
    for (const stream of streams) await stream.next();
    const pid = await freeze(engine);
    const pending = streams.map((stream) => failure((async () => {
      for (;;) if ((await stream.next()).done === true) return;
    })(), 'TransportError'));
    const calls = [
      engine.embed({ model: 'tiny', input: 'a' }), engine.tokenize({ model: 'tiny', text: 'a' }),
      engine.generate(LONG), engine.loadModel({ model: `b${round}`, localPath: tinyModel() }),
    ].map((call) => failure(call, 'TransportError'));
    const { parts } = engine as unknown as { parts: Parts };
    await eventually('all are on their way', () =>
      (parts.supervisor.live?.nPending ?? 0) >= calls.length);
    process.kill(pid, 'SIGKILL');
    await Promise.all([...pending, ...calls]);
    // A success of each, so that no circuit opens.
    await engine.generate({ ...LONG, maxTokens: 2 });
    await engine.tokenize({ model: 'tiny', text: 'a' });
    await engine.embed({ model: 'tiny', input: 'a' });
    assert.equal(engine.getModelInfo('tiny')?.state, 'ready');
    assert.equal(engine.getStreamMetrics().activeStreams, 0);
  }
  assert.equal((await engine.healthCheck()).status, 'healthy');
});

test('a runtime that cannot start again says so, and starts when it can', async (t) => {
  const engine = await makeTinyEngine(t);
  const statuses: RuntimeStatus[] = [];
  engine.on('runtime:status', ({ status }) => statuses.push(status));
  await kill(engine);
  await eventually('ready', () => statuses.includes('ready'));
  await engine.shutdown();
  assert.equal(statuses.at(-1), 'stopped');
  const health = await engine.healthCheck();
  assert.deepEqual(health.runtime, { status: 'stopped' });
});

test('a model that the runtime has lost without dying is found by the health check', async (t) => {
  const engine = await makeTinyEngine(t);
  // Behind the engine's back.
  const { parts } = engine as unknown as { parts: Parts };
  await parts.client.call('unload_model', { model_id: 'tiny' });
  const invalidated = once(engine, 'model:invalidated');
  const health = await engine.healthCheck();
  assert.equal(health.status, 'degraded');
  assert.match(health.stateErrors?.join() ?? '', /'tiny' is loaded here and not in the runtime/);
  assert.equal((await invalidated)[0].reason, 'error');
  assert.equal((await engine.generate({ ...LONG, maxTokens: 2 })).length >= 0, true);
  assert.equal((await engine.healthCheck()).status, 'healthy');
});

test('a host that dies takes its runtime along', async () => {
  const program = `
    const { Engine } = require(${JSON.stringify(join(PACKAGE, 'build', 'src', 'index.js'))});
    const engine = new Engine({ krPath: ${JSON.stringify(KR)}, runtime: { args: ['--no-cache'] } });
    engine.getRuntimeInfo().then(({ pid }) => console.log(pid));
    setInterval(() => {}, 1000);`;
  const host = spawn(process.execPath, ['-e', program], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [data] = await once(host.stdout, 'data') as [Buffer];
  const pid = Number(data.toString());
  assert.ok(pid > 0);
  process.kill(pid, 0);
  host.kill('SIGKILL');
  await once(host, 'close');
  await eventually('the runtime is gone', () => {
    try {
      process.kill(pid, 0);
      return false;
    } catch {
      return true;
    }
  });
});

test('a child that is stopped and answers no more is replaced, when that is watched', async (t) => {
  const engine = await makeTinyEngine(t, { config: { runtime: {
    health_interval_ms: 2000, health_failures_max: 2, shutdown_timeout_ms: 100,
  } } });
  const pid = (await engine.getRuntimeInfo()).pid as number;
  process.kill(pid, 'SIGSTOP');
  await eventually('another one answers', async () => {
    // A slow machine may lose one more; none of them stays.
    const info = await engine.getRuntimeInfo().catch(() => undefined);
    return info !== undefined && info.pid !== pid;
  });
  assert.throws(() => process.kill(pid, 0), { code: 'ESRCH' });
});
