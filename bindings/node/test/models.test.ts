// Models: loads that are shared, room that is made, use that is waited for.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ModelManager } from '../src/core/model-manager.js';
import type { ManagerOptions, WireModel } from '../src/core/model-manager.js';
import { EngineClientError } from '../src/errors.js';
import { collectChunks } from '../src/index.js';
import { KR, eventually, failure, makeEngine, makeTinyEngine, tinyModel } from './support.js';
import { execFileSync } from 'node:child_process';

const GREEDY = { model: 'tiny', prompt: 'Hello', temperature: 0, maxTokens: 4, ignoreEos: true };

function wireModel(id: string, draft = false): WireModel {
  return {
    model_id: id, state: 'ready', draft, context_length: 512, context_length_trained: 512,
    parameter_count: 1, vocab_size: 320, is_vision_model: false, dtype: 'f32',
    architecture: 'llama',
    cached_path: `/${id}`, memory_usage: 1, embedding_length: 64, has_chat_template: false,
    load_time_ms: 1,
  };
}

interface Rig {
  manager: ModelManager;
  calls: string[];
  events: string[];
  /** Loads wait for these, by id, where one is set. */
  gates: Map<string, Promise<void>>;
  failures: Map<string, EngineClientError>;
}

function rig(more: Partial<ManagerOptions> = {}): Rig {
  const calls: string[] = [];
  const events: string[] = [];
  const gates = new Map<string, Promise<void>>();
  const failures = new Map<string, EngineClientError>();
  const manager = new ModelManager({
    call: async <T>(method: string, params: Record<string, unknown>): Promise<T> => {
      const id = params['model_id'] as string;
      calls.push(`${method} ${id}`);
      await gates.get(id);
      const error = failures.get(id);
      if (error !== undefined) throw error;
      return wireModel(id, params['draft'] === true) as T;
    },
    connect: async () => {},
    maxModels: 2, loadTimeoutMs: 1000,
    onLoaded: (handle) => events.push(`loaded ${handle.descriptor.id}`),
    onUnloaded: (id) => events.push(`unloaded ${id}`),
    onInvalidated: (id, reason) => events.push(`invalidated ${id} ${reason}`),
    onError: (error) => events.push(`error ${error.code}`),
    ...more,
  });
  return { manager, calls, events, gates, failures };
}

function gate(): { promise: Promise<void>; open: () => void } {
  let open = (): void => {};
  const promise = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { promise, open };
}

test('lesson 25: identical loads share one promise; a failed unload forgets nothing', async () => {
  const { manager, calls, events, gates, failures } = rig();
  const held = gate();
  gates.set('a', held.promise);
  const loads = [manager.load({ model: 'a' }), manager.load({ model: 'a' })];
  assert.equal(manager.get('a')?.state, 'loading');
  await failure(manager.load({ model: 'a', draft: true }), 'ModelLoadError'); // not identical
  held.open();
  const [one, two] = await Promise.all(loads);
  assert.equal(one, two);
  assert.deepEqual(calls, ['load_model a']);
  failures.set('a', new EngineClientError('ServerError', 'busy'));
  await failure(manager.unload('a'), 'ServerError');
  assert.equal(manager.get('a')?.state, 'ready');
  failures.delete('a');
  await Promise.all([manager.unload('a'), manager.unload('a')]);
  assert.equal(manager.get('a'), undefined);
  assert.equal(calls.filter((call) => call === 'unload_model a').length, 2);
  assert.deepEqual(events, ['loaded a', 'invalidated a unload', 'unloaded a']);
  await manager.unload('never'); // still said
  assert.equal(events.at(-1), 'unloaded never');
});

test('lesson 23: room is made by the oldest that nothing uses, never by what comes', async () => {
  const { manager, events } = rig();
  await manager.load({ model: 'a' });
  await manager.load({ model: 'b' });
  const release = await manager.acquire('a'); // the newer use, and one that lasts
  await manager.load({ model: 'c' });
  assert.deepEqual(manager.list().map((handle) => handle.descriptor.id), ['a', 'c']);
  assert.ok(events.includes('unloaded b'));
  const other = await manager.acquire('c');
  await failure(manager.load({ model: 'd' }), 'ModelLoadError');
  assert.deepEqual(manager.recent().map(({ modelId }) => modelId), ['c', 'a']);
  release();
  release(); // twice is once
  await manager.load({ model: 'd' });
  assert.deepEqual(manager.recent().map(({ modelId }) => modelId), ['d', 'c']);
  other();
  // A model that came back starts anew: it is not the oldest.
  await manager.load({ model: 'a' });
  assert.deepEqual(manager.recent().map(({ modelId }) => modelId), ['a', 'd']);
});

test('lesson 23: loads that meet at the limit take turns, and none waits for ever', async () => {
  const { manager } = rig({ maxModels: 1 });
  const handles = await Promise.all(['a', 'b', 'c'].map((model) => manager.load({ model })));
  assert.equal(handles.length, 3);
  assert.equal(manager.nReady, 1);
});

test('lesson 20: who needs a model waits until it is ready, or hears why it is not', async () => {
  const { manager, gates, failures } = rig();
  const held = gate();
  gates.set('a', held.promise);
  const loading = manager.load({ model: 'a' });
  let hasIt = false;
  const using = manager.acquire('a').then((release) => {
    hasIt = true;
    return release;
  });
  await Promise.resolve();
  assert.equal(hasIt, false);
  held.open();
  await loading;
  (await using)();
  failures.set('b', new EngineClientError('ModelLoadError', 'no such file'));
  const failing = failure(manager.load({ model: 'b' }), 'ModelLoadError');
  await failure(manager.acquire('b'), 'ModelLoadError');
  await failing;
  assert.equal(manager.get('b')?.state, 'failed');
  assert.equal(manager.get('b')?.metadata.error?.code, 'ModelLoadError');
  const error = await failure(manager.acquire('b'), 'ModelNotLoaded');
  assert.match(error.message, /no such file/);
  failures.delete('b');
  assert.equal((await manager.load({ model: 'b' })).state, 'ready');
});

test('an unload waits for generations that have just ended, not for those under way', async () => {
  const { manager, calls, failures } = rig();
  await manager.load({ model: 'a' });
  failures.set('a', new EngineClientError('ServerError', 'busy', { data: { kr_status: 14 } }));
  const release = await manager.acquire('a');
  await failure(manager.unload('a'), 'ServerError');
  release();
  const unloading = manager.unload('a');
  await eventually('it has asked again', () => calls.length >= 4);
  failures.delete('a');
  await unloading;
  assert.equal(manager.get('a'), undefined);
});

test('drafts: pairs are kept in both directions and end with either', async () => {
  const { manager } = rig({ maxModels: 3 });
  await manager.load({ model: 'a' });
  await manager.load({ model: 'd', draft: true });
  manager.pair('a', 'd');
  assert.deepEqual([manager.pairOf('a'), manager.pairOf('d')], ['d', 'a']);
  await manager.unloadDraft(undefined);
  assert.equal(manager.get('d'), undefined);
  assert.equal(manager.pairOf('a'), undefined);
  await manager.unloadDraft(undefined); // there is none
});

test('lesson 35: what was lost is said at once, loaded again, and waited for', async () => {
  const { manager, events, calls, gates } = rig();
  await manager.load({ model: 'a' });
  const held = gate();
  gates.set('a', held.promise);
  manager.lost();
  assert.deepEqual(events, ['loaded a', 'invalidated a python_restart']);
  assert.equal(manager.get('a')?.state, 'loading');
  manager.connected([]);
  const using = manager.acquire('a');
  held.open();
  (await using)();
  assert.deepEqual(calls, ['load_model a', 'load_model a']);
  assert.equal(events.at(-1), 'loaded a');
});

test('a model that takes the runtime down with it is not tried for ever', async () => {
  const { manager, events, failures } = rig();
  await manager.load({ model: 'a' });
  failures.set('a', new EngineClientError('TransportError', 'gone'));
  for (let n = 0; n < 2; n += 1) {
    manager.lost();
    manager.connected([]);
    await failure(manager.acquire('a'));
  }
  assert.equal(manager.get('a')?.state, 'failed');
  assert.ok(events.includes('error TransportError'));
  await failure(manager.acquire('a'), 'ModelNotLoaded');
});

test('lesson 22: what is reported of a model is read from its file', async (t) => {
  const engine = makeEngine(t);
  const path = tinyModel('qwen2');
  const handle = await engine.loadModel({ model: 'tiny', localPath: path, contextLength: 256 });
  const inspected = JSON.parse(execFileSync(KR, ['inspect', '--no-cache', '--json', '-m', path],
    { encoding: 'utf8' })) as Record<string, unknown>;
  assert.equal(handle.contextLength, 256);
  assert.equal(handle.metadata.architecture, 'qwen2');
  assert.ok((handle.metadata.parameterCount ?? 0) > 10_000);
  assert.ok(JSON.stringify(inspected).includes(String(handle.metadata.parameterCount)));
  assert.equal(handle.metadata.dtype, 'f32');
  assert.ok((handle.metadata.memoryUsage ?? 0) > 0);
  assert.equal(handle.descriptor.path, path);
});

test('lesson 18: drafts are loaded, compared, paired; generating with one is not', async (t) => {
  const engine = await makeTinyEngine(t);
  const draft = await engine.loadDraftModel({ model: 'draft', localPath: tinyModel('qwen2') });
  assert.equal(draft.draft, true);
  const report = await engine.is_draft_model_compatible('tiny', 'draft');
  const { primaryModel, draftModel, performanceEstimate } = report.details;
  assert.equal(report.compatible, primaryModel.vocabSize === draftModel.vocabSize);
  assert.ok(primaryModel.parameterCount > 0 && draftModel.parameterCount > 0);
  assert.match(performanceEstimate.expectedSpeedup, /^\d\.\d\dx$/);
  await failure(engine.generate({ ...GREEDY, draftModel: 'draft' }), 'InvalidParams');
  await failure(engine.isDraftModelCompatible('tiny', 'odd'), 'ModelNotLoaded');
  await engine.unloadDraftModel();
  assert.equal(engine.getModelInfo('draft'), undefined);
  const string = await engine.load_draft_model(tinyModel()); // a string is a model
  assert.equal(string.descriptor.id, tinyModel());
});

test('lesson 20: a load and the generations that do not wait for it', async (t) => {
  const engine = makeEngine(t);
  await engine.start();
  const loading = engine.loadModel({ model: 'tiny', localPath: tinyModel() });
  const texts = await Promise.all([1, 2, 3].map(() => engine.generate(GREEDY)));
  assert.equal(new Set(texts).size, 1);
  await loading;
});

test('lesson 26: every loaded model is listed and can be unloaded; vision is not', async (t) => {
  const engine = await makeTinyEngine(t);
  await engine.loadModel({ model: 'b', localPath: tinyModel('qwen2') });
  assert.deepEqual(engine.list_models().map((handle) => handle.descriptor.id), ['tiny', 'b']);
  await failure(engine.loadVisionModel({ model: 'v' }), 'MethodNotFound');
  const health = await engine.healthCheck();
  assert.equal(health.status, 'healthy');
  assert.equal(health.loadedModels, 2);
  await engine.unload_model('tiny');
  await engine.unloadModel('b');
  assert.deepEqual(engine.listModels(), []);
  assert.equal((await engine.healthCheck()).status, 'healthy');
});

test('lesson 24: files are used where they lie, and loaded once', async (t) => {
  const engine = makeEngine(t);
  await engine.start();
  const path = tinyModel();
  const loads = await Promise.all(Array.from({ length: 8 }, () =>
    engine.loadModel({ model: 'tiny', localPath: path })));
  assert.equal(new Set(loads).size, 1);
  assert.equal(loads[0]?.metadata.cachedPath, path);
  const other = await failure(engine.loadModel({ model: 'tiny', localPath: tinyModel('qwen2') }),
    'ModelLoadError');
  assert.match(other.message, /unload it first/);
});

test('a warm-up loads and computes one token', async (t) => {
  const engine = makeEngine(t);
  await engine.warmupModel({ model: 'tiny', localPath: tinyModel() });
  assert.equal((await engine.getTelemetryReport()).generation.totalTokens, 1);
});

test('models of the configuration are there from the start, what fails is said', async (t) => {
  const path = tinyModel();
  const engine = makeEngine(t, {
    config: { model: { memory_cache: { warmup_on_start: [path, '/no/such.gguf'] } } },
  });
  const errors: string[] = [];
  engine.on('error', ({ error }) => errors.push(error.code));
  await engine.start();
  assert.equal(engine.getModelInfo(path)?.state, 'ready');
  assert.deepEqual(errors, ['ModelLoadError']);
  const chunks = await collectChunks(engine, { ...GREEDY, model: path });
  assert.equal(chunks.at(-1)?.type, 'metadata');
});
