// The end of an engine while things are under way, and other ways to be left with half of something.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Engine } from '../src/engine.js';
import { ensureModelLoaded, waitForModelReady } from '../src/helpers.js';
import type { GeneratorParams } from '../src/types.js';
import {
  NOTHING, ScriptedTransport, eventually, failure, makeEngine, makeTinyEngine, tinyModel,
} from './support.js';
import type { Request } from './support.js';

const LONG: GeneratorParams = {
  model: 'tiny', prompt: 'Hi', maxTokens: 400, temperature: 0, ignoreEos: true,
};
const LOADED = { model_id: 'tiny', state: 'ready', type: 'text', draft: false, context_length: 64 };
const SHORT: GeneratorParams = { ...LONG, maxTokens: 2 };

function statuses(engine: Engine): string[] {
  const seen: string[] = [];
  engine.on('runtime:status', ({ status }) => seen.push(status));
  return seen;
}

test('streams that wait for a place end with the engine and do not start it again', async (t) => {
  const engine = await makeTinyEngine(t,
    { config: { stream_registry: { max_active_streams: 1 } } });
  const first = engine.createGenerator(LONG);
  await first.next();
  const waiting = [engine.generate(SHORT), engine.generate(SHORT)]
    .map((text) => failure(text, 'Cancelled'));
  await eventually('both wait', () => engine.getStreamMetrics().waitingStreams === 2);
  const seen = statuses(engine);
  await engine.shutdown();
  await Promise.all(waiting);
  assert.deepEqual(seen, ['stopped']);
  await engine.loadModel({ model: 'tiny', localPath: tinyModel() });
  assert.equal(typeof await engine.generate(SHORT), 'string');
});

test('what begins just before the end, or during it, fails and brings no runtime back', async (t) => {
  const engine = await makeTinyEngine(t);
  const seen = statuses(engine);
  const before = [
    engine.loadModel({ model: 'other', localPath: tinyModel() }), engine.generate(SHORT),
    engine.countTokens({ model: 'tiny', text: 'a' }), engine.embed({ model: 'tiny', input: 'a' }),
  ].map((call) => failure(call));
  const end = engine.shutdown();
  const during = failure(engine.loadModel({ model: 'late', localPath: tinyModel() }), 'Cancelled');
  await Promise.all([...before, during, end]);
  assert.deepEqual(seen, ['stopped']);
  assert.deepEqual(engine.listModels().filter(({ state }) => state !== 'failed'), []);
  const handle = await engine.loadModel({ model: 'late', localPath: tinyModel() });
  assert.equal(handle.state, 'ready');
});

test('after a restart by a QoS policy streams have ended and models are there again', async (t) => {
  const engine = await makeTinyEngine(t, { config: { qos: {
    enabled: true, evaluation_interval_ms: 20, cooldown_ms: 3_600_000,
    policies: [{ name: 'never', metric: 'latency_p95', max: 0.000001, action: 'restart' }],
  } } });
  const seen = statuses(engine);
  const stream = engine.createGenerator(LONG);
  await stream.next();
  await engine.generate(SHORT); // which the policy does not like
  await eventually('it starts anew', () => seen.includes('starting'));
  await failure((async () => { // the reader was slow, so it cannot have been over
    for await (const chunk of stream) assert.ok(chunk);
  })(), 'TransportError');
  await eventually('it is there again', () => seen.includes('ready'));
  assert.equal(typeof await engine.generate(SHORT), 'string');
  assert.deepEqual(seen, ['stopped', 'starting', 'ready']);
});

test('a listener that throws keeps nothing from those behind it', async (t) => {
  const engine = await makeTinyEngine(t);
  let nSeen = 0;
  engine.once('generation:completed', () => {
    throw new Error('mine');
  });
  engine.on('generation:completed', () => {
    nSeen += 1;
  });
  await engine.generate(SHORT);
  await engine.generate(SHORT);
  assert.equal(nSeen, 2);
  assert.equal(engine.listenerCount('generation:completed'), 1);
});

test('wrong types are refused where they would do nothing, hang or stay', async (t) => {
  const engine = await makeTinyEngine(t);
  for (const id of [undefined, 5, engine.listModels()[0]]) {
    await failure(engine.unloadModel(id as unknown as string), 'InvalidParams');
  }
  const signal = { aborted: false, addEventListener: 5 } as unknown as AbortSignal;
  const error = await failure(engine.generate(SHORT, { signal }), 'InvalidParams');
  assert.deepEqual((error.details as { field: string }).field, 'signal');
  await failure(ensureModelLoaded(engine, { model: null } as never), 'InvalidParams');
  await failure(waitForModelReady(engine, 'nothing', NaN, 1), 'Timeout');
  const listening = makeEngine(t, { runtime: { args: ['--socket', '/nowhere'] } });
  await failure(listening.start(), 'InvalidParams');
});

test('the time limit of embed holds although the runtime says nothing', async (t) => {
  const engine = makeEngine(t, {}, {
    runner: () => new ScriptedTransport(({ method }) => (method === 'load_model' ? LOADED
      : method === 'embed' ? NOTHING : undefined)),
  });
  await engine.loadModel('tiny');
  await failure(engine.embed({ model: 'tiny', input: 'a', timeoutMs: 20 }), 'Timeout');
});

test('a call that waited for its turn while the runtime died waits for its model', async (t) => {
  const transports: ScriptedTransport[] = [];
  let load: Request | undefined;
  const engine = makeEngine(t, {}, {
    runner: () => {
      const isFirst = transports.length === 0;
      let isLoaded = isFirst;
      const transport = new ScriptedTransport((request, itself) => {
        if (request.method === 'load_model') {
          if (isFirst) return LOADED;
          load = request;
          return NOTHING;
        }
        if (isFirst || !request.method.endsWith('tokenize')) return undefined;
        if (isLoaded) return { tokens: [1] };
        itself.fail(request, -32005, "model 'tiny' is not loaded");
        isLoaded = true;
        setImmediate(() => itself.say({ id: load?.id, result: LOADED }));
        return NOTHING;
      });
      transports.push(transport);
      return transport;
    },
  });
  await engine.loadModel('tiny');
  const first = failure(engine.tokenize({ model: 'tiny', text: 'a' }));
  await eventually('it is sent', () => transports[0]?.of('tokenize').length === 1);
  const late = engine.tokenize({ model: 'tiny', text: 'b' });
  transports[0]?.crash();
  await first;
  assert.deepEqual(await late, { tokens: [1] });
});

test('a pause between two attempts ends with the engine and brings no runtime back', async (t) => {
  const transports: ScriptedTransport[] = [];
  const retried: string[] = [];
  const hooks = { onRetry: (method: string) => retried.push(method) };
  const retry = { initial_delay_ms: 3_600_000, max_delay_ms: 3_600_000 };
  const engine = makeEngine(t, {
    config: { json_rpc: { retry } }, telemetry: { enabled: true, hooks },
  }, { runner: () => {
    const transport = new ScriptedTransport((request, itself) => {
      if (request.method === 'load_model') return LOADED;
      if (!['detokenize', 'tokenize'].includes(request.method)) return undefined;
      itself.fail(request, -32000, 'full', { kr_status: 14 });
      return NOTHING;
    });
    transports.push(transport);
    return transport;
  } });
  await engine.loadModel('tiny');
  const gone = new AbortController();
  const ends = [
    engine.detokenize({ model: 'tiny', tokens: [1] }),
    engine.tokenize({ model: 'tiny', text: '' }, { signal: gone.signal }),
  ].map((call) => failure(call, 'Cancelled'));
  await eventually('both pause', () => retried.length === 2);
  gone.abort();
  await ends[1];
  await engine.shutdown();
  await Promise.all(ends);
  await new Promise(setImmediate);
  assert.equal(transports.length, 1);
});
