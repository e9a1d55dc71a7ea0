// The engine on the real runtime with a tiny model: methods, results, events, hooks.
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import {
  EngineEventSchemas, createEngine, create_generator, createMLXEngine,
} from '../src/index.js';
import {
  batchTokenize, collectChunks, ensureModelLoaded, generateText, generateTextStreaming,
  generate, getEngine, getTotalTokenCount, isEngineHealthy, load_model, retryLoadModel, shutdown,
  tokenize, unload_model, waitForModelReady, withEngine,
} from '../src/index.js';
import type { EngineEvents, EngineHooks, GeneratorChunk } from '../src/index.js';
import {
  BUILD, KR, failure, makeEngine, makeTinyEngine, scratch, tinyModel,
} from './support.js';

const GREEDY = { model: 'tiny', prompt: 'Hello', temperature: 0, ignoreEos: true };

test('the runtime says who it is, and what of the ancestor is not there', async (t) => {
  const engine = makeEngine(t);
  const info = await engine.getRuntimeInfo(); // starts it
  assert.ok((info.pid ?? 0) > 0 && info.pid !== process.pid);
  assert.equal(info.transport, 'child');
  assert.equal(info.protocol, 'json-rpc-2.0');
  assert.ok(info.capabilities.includes('batch_tokenize'));
  assert.ok((info.memory?.rss ?? 0) > 0);
  assert.equal(info.mlxVersion, undefined);
  assert.equal(info.mlxSupported, false);
});

test('text, tokens, counts, embeddings, chat, in both spellings', async (t) => {
  const engine = await makeTinyEngine(t);
  const { tokens, tokenStrings } = await engine.tokenize({ model: 'tiny', text: 'Hi there' });
  assert.equal(tokens.length, tokenStrings?.length);
  assert.deepEqual(await engine.detokenize({ model: 'tiny', tokens, skipSpecialTokens: true }),
    { text: 'Hi there' });
  assert.equal(await engine.count_tokens({ model: 'tiny', text: 'Hi there' }), tokens.length);
  assert.equal((await engine.tokenize({ model: 'tiny', text: '' })).tokens.length,
    await engine.countTokens({ model: 'tiny', text: '' }));
  const embedded = await engine.embed({ model: 'tiny', input: ['a', 'b'] });
  assert.equal(embedded.embeddings.length, 2);
  assert.equal(embedded.embeddings[0]?.length, embedded.dimensions);
  const messages = [{ role: 'user', content: 'Hi' }];
  const chat = { model: 'tiny', messages, maxTokens: 4, temperature: 0, ignoreEos: true };
  assert.equal(await engine.chat(chat), await engine.generate(chat));
  assert.equal(typeof await engine.chat(messages, { timeoutMs: WAIT }), 'string');
  assert.ok(await engine.countTokens({ model: 'tiny', messages }) > 0);
  const snake = await engine.create_generator({ ...GREEDY, max_tokens: 3 }).next();
  assert.equal(snake.value?.type, 'token');
});
const WAIT = 120_000;

test('a stream has tokens, one of them final, then statistics, then its end', async (t) => {
  const engine = await makeTinyEngine(t);
  const chunks = await collectChunks(engine, { ...GREEDY, maxTokens: 6 });
  const tokens = chunks.filter((chunk) => chunk.type === 'token');
  assert.deepEqual(chunks.map((chunk) => chunk.type),
    [...tokens.map(() => 'token'), 'metadata']);
  assert.deepEqual(tokens.map((chunk) => chunk.isFinal),
    tokens.map((_, index) => index === tokens.length - 1));
  const last = chunks.at(-1);
  assert.ok(last?.type === 'metadata');
  assert.equal(last.stats.tokensGenerated, 6);
  assert.equal(last.stats.finishReason, 'length');
  assert.equal(last.stats.modelId, 'tiny');
  assert.ok((last.stats.promptTokens ?? 0) > 0);
});

test('the same text by stream, in one piece, by template, by tokens, by helpers', async (t) => {
  const engine = await makeTinyEngine(t);
  const params = { ...GREEDY, maxTokens: 12 };
  const text = await engine.generate(params);
  const streamed = await generateTextStreaming(engine, params, () => {});
  assert.equal(streamed.text, text);
  assert.equal(streamed.stats?.tokensGenerated, 12);
  const pieces: string[] = [];
  await generateTextStreaming(engine, params, (token) => pieces.push(token));
  assert.equal(pieces.join(''), text);
  assert.equal(await generateText(engine, { ...params, streaming: true }), text);
  const whole = await collectChunks(engine, { ...params, streaming: false });
  assert.deepEqual(whole.map((chunk) => chunk.type), ['token', 'metadata']);
  assert.equal((whole[0] as { token: string }).token, text);
  const { tokens } = await engine.tokenize({ model: 'tiny', text: 'Hello' });
  assert.equal(await engine.generate({ ...params, prompt: { tokens } }), text);
  const template = { template: 'Hel{{rest}}', variables: { rest: 'lo' } };
  assert.equal(await engine.generate({ ...params, prompt: template }), text);
});

test('helpers', async (t) => {
  const engine = await makeTinyEngine(t);
  const texts = ['one', 'two words', ''];
  const all = await batchTokenize(engine, 'tiny', texts);
  assert.equal(all.length, 3);
  assert.equal(await getTotalTokenCount(engine, 'tiny', texts),
    all.reduce((sum, { tokens }) => sum + tokens.length, 0));
  assert.equal((await ensureModelLoaded(engine, 'tiny')).state, 'ready');
  assert.equal((await ensureModelLoaded(engine, { model: 'two', localPath: tinyModel('qwen2') }))
    .metadata.architecture, 'qwen2');
  assert.equal((await waitForModelReady(engine, 'two')).state, 'ready');
  await failure(waitForModelReady(engine, 'three', 5, 1), 'Timeout');
  await failure(retryLoadModel(engine, '/no/such.gguf', 2, 1), 'ModelLoadError');
  assert.equal(await isEngineHealthy(engine), true);
  assert.equal(await withEngine((own) => own.listModels().length, { krPath: KR }), 0);
});

test('createEngine starts or says why not; an engine works again after its end', async (t) => {
  const engine = await createEngine({ krPath: KR, runtime: { args: ['--no-cache'] } });
  t.after(() => engine.dispose());
  const first = (await engine.getRuntimeInfo()).pid;
  await engine.loadModel({ model: 'tiny', localPath: tinyModel() });
  await Promise.all([engine.shutdown(), engine.shutdown(), engine.dispose()]);
  assert.deepEqual(engine.listModels(), []);
  assert.equal((await engine.healthCheck()).status, 'unhealthy');
  assert.notEqual((await engine.getRuntimeInfo()).pid, first);
  await failure(engine.generate(GREEDY), 'ModelNotLoaded');
  const missing = await failure(createEngine({ krPath: join(BUILD, 'no-kr') }), 'RuntimeError');
  assert.equal(missing.name, 'PythonEnvironmentError');
  const wrong = await failure(createEngine({ krPath: KR, runtime: { args: ['--odd'] } }));
  assert.match(wrong.message, /--odd/);
});

test('models that the runtime was started with are there', async (t) => {
  const engine = makeEngine(t, { runtime: { args: ['-m', `mine=${tinyModel()}`] } });
  assert.equal(typeof await engine.generate({ ...GREEDY, model: 'mine', maxTokens: 2 }), 'string');
  assert.equal(engine.getModelInfo('mine')?.state, 'ready');
  assert.equal((await engine.healthCheck()).stateConsistent, true);
});

test('defaults of a load are those of its generations', async (t) => {
  const engine = makeEngine(t);
  await engine.loadModel({
    model: 'tiny', localPath: tinyModel(), max_tokens: 3, parameters: { ignoreEos: true },
  });
  const stats = async (more: object): Promise<number | undefined> => {
    const chunk = (await collectChunks(engine, { model: 'tiny', prompt: 'a', ...more })).at(-1);
    return chunk?.type === 'metadata' ? chunk.stats.tokensGenerated : undefined;
  };
  assert.equal(await stats({}), 3);
  assert.equal(await stats({ maxTokens: 5 }), 5);
});

test('every event is emitted, in the form of its schema', async (t) => {
  const engine = makeEngine(t, {
    config: { qos: { enabled: true, policies: [
      { name: 'never', metric: 'throughput', min: 1e12, action: 'alert' }],
    evaluation_interval_ms: 10 } },
  });
  const seen = new Map<string, unknown[]>();
  for (const name of Object.keys(EngineEventSchemas) as (keyof EngineEvents)[]) {
    engine.on(name, (payload) => {
      const schema = EngineEventSchemas[name] as { parse(value: unknown): unknown };
      schema.parse(payload);
      seen.set(name, [...seen.get(name) ?? [], payload]);
    });
  }
  await engine.start();
  await engine.loadModel({ model: 'tiny', localPath: tinyModel() });
  const violated = new Promise((resolve) => engine.once('qos:violation', resolve));
  await engine.generate({ ...GREEDY, maxTokens: 3 });
  await violated;
  await engine.unloadModel('tiny');
  await failure(engine.generate({ ...GREEDY, maxTokens: 3 }), 'ModelNotLoaded');
  await engine.shutdown();
  assert.deepEqual([...seen.keys()].sort(), Object.keys(EngineEventSchemas).sort());
  assert.deepEqual((seen.get('runtime:status') as { status: string }[]).map((e) => e.status),
    ['starting', 'ready', 'stopped']);
  assert.equal(seen.get('generation:token')?.length, 3);
});

test('hooks are called; those that throw stop nobody', async (t) => {
  const calls: string[] = [];
  const note = (name: string) => (...args: unknown[]): void => {
    calls.push(`${name} ${args.length}`);
    throw new Error('a hook that throws');
  };
  const hooks: EngineHooks = {
    onModelLoaded: note('loaded'), onTokenGenerated: note('token'),
    onGenerationCompleted: note('completed'), onError: note('error'),
    onGenerationFailed: note('failed'), onIpcRequestStarted: () => {},
  };
  const engine = makeEngine(t, { telemetry: { enabled: true, hooks } });
  await engine.start();
  engine.on('model:loaded', () => {
    throw new Error('a listener that throws');
  });
  await engine.loadModel({ model: 'tiny', localPath: tinyModel() });
  await engine.generate({ ...GREEDY, maxTokens: 2 });
  await failure(engine.generate({ ...GREEDY, model: 'odd' }), 'ModelNotLoaded');
  assert.deepEqual(calls, ['loaded 1', 'token 2', 'token 2', 'completed 1', 'failed 1', 'error 1']);
});

test('an error that nobody listens to is no exception', async (t) => {
  const engine = await makeTinyEngine(t);
  const params = { ...GREEDY, maxTokens: 100_000, prompt: 'x'.repeat(5000) };
  const error = await failure(engine.generate(params), 'GenerationError');
  assert.equal((error.details as { modelId?: string }).modelId, 'tiny');
});

test('what is not built is refused by name', async (t) => {
  const engine = makeEngine(t);
  const vision = await failure(engine.loadVisionModel({ model: 'v' }), 'MethodNotFound');
  assert.match(vision.message, /vision is not built/);
  await failure(engine.createVisionGenerator({ model: 'v', prompt: 'p', image: [] }).next(),
    'MethodNotFound');
  await failure(engine.generate({ ...GREEDY, structured: { schema: {}, format: 'json' } }),
    'GuidanceError');
});

test('errors of the runtime carry its code, its field and what it said', async (t) => {
  const engine = await makeTinyEngine(t);
  const bad = await failure(engine.detokenize({ model: 'tiny', tokens: [2_000_000] }));
  const details = bad.details as { rpcCode: number; method: string; data: { type: string } };
  assert.equal(details.data.type, bad.code);
  assert.equal(details.method, 'detokenize');
  assert.deepEqual(Object.keys(bad.toObject()).sort(), ['code', 'details', 'message']);
});

test('telemetry of the runtime, its configuration, statistics of the caches', async (t) => {
  const file = join(scratch(), 'reload.json');
  const own = join(scratch(), 'own.json');
  writeFileSync(file, '{"deadline-s": 300}');
  writeFileSync(own, '{}');
  const engine = await makeTinyEngine(t, {
    cacheDir: join(scratch(), 'cache'), config: own, runtime: { args: ['--config', file] },
  });
  await engine.generate({ ...GREEDY, maxTokens: 4 });
  const report = await engine.getTelemetryReport();
  assert.equal(report.enabled, true);
  assert.ok(report.generation.calls >= 1);
  assert.ok(report.generation.totalTokens >= 4);
  assert.ok(report.generation.latencyMs.p99 >= report.generation.latencyMs.p50);
  assert.ok(report.generation.throughput.tokensPerSecond > 0);
  assert.equal(report.errors.total, 0);
  assert.deepEqual(await engine.reloadConfig(), { success: true, changed: [], needsRestart: [] });
  writeFileSync(file, '{"deadline-s": 200}');
  writeFileSync(own, '{"model": {"max_loaded_models": 2}}');
  assert.deepEqual(await engine.reload_config(),
    { success: true, changed: ['deadline-s'], needsRestart: ['model'] });
  await failure(makeEngine(t).reloadConfig(), 'InvalidRequest');
  const cache = await engine.getCacheStats();
  assert.equal(cache.loadedModels, 1);
  assert.equal(cache.maxModels, 5);
  assert.equal(cache.models[0]?.modelId, 'tiny');
  assert.ok(Math.abs(Date.now() - (cache.models[0]?.lastAccess ?? 0)) < WAIT);
  const health = await engine.get_artifact_cache_health();
  assert.equal(health.healthy, true);
  assert.equal(health.nearLimit, false);
});

test('metrics for Prometheus when the configuration asks for them, until the end', async (t) => {
  const engine = await makeTinyEngine(t, {
    config: { telemetry: { enabled: true, prometheus_port: 0 } },
  });
  await engine.generate({ ...GREEDY, maxTokens: 3 });
  const page = await fetch(`http://127.0.0.1:${engine.telemetryPort}/metrics`);
  assert.match(await page.text(), /kr_serve_tokens_generated_total\{model="tiny"\} 3/);
  await engine.shutdown();
  assert.equal(engine.telemetryPort, undefined);
});

test('equal deterministic generations share one, and texts are kept, when asked for', async (t) => {
  const engine = await makeTinyEngine(t, {
    config: { request_coalescing: { enabled: true }, prompt_cache: { enabled: true } },
  });
  const params = { ...GREEDY, maxTokens: 8 };
  const texts = await Promise.all([1, 2, 3].map(() => engine.generate(params)));
  assert.equal(new Set(texts).size, 1);
  assert.equal(await engine.generate(params), texts[0]);
  const { coalescing, responseCache } = engine.getReuseStats();
  assert.equal(coalescing.executions, 1);
  assert.equal(coalescing.coalesced, 2);
  assert.equal(responseCache.hits, 1);
  await failure(engine.generate(params, { signal: AbortSignal.abort() }), 'Cancelled');
  assert.equal(engine.getReuseStats().responseCache.hits, 1);
  assert.equal(engine.getStreamMetrics().totalStreams, 1);
  await engine.unloadModel('tiny');
  await failure(engine.generate(params), 'ModelNotLoaded'); // what is gone answers no more
});

test('the module functions share one engine, MLXEngine has one of its own', async (t) => {
  process.env['KR_PATH'] = KR;
  t.after(() => shutdown());
  const handle = await load_model({ model: 'tiny', localPath: tinyModel() });
  const text = await generate(handle, 'Hello', { max_tokens: 4, temperature: 0 });
  let streamed = '';
  const params = { maxTokens: 4, temperature: 0 };
  const chunks: AsyncIterable<GeneratorChunk> = create_generator(handle, 'Hello', params);
  for await (const chunk of chunks) {
    if (chunk.type === 'token') streamed += chunk.token;
  }
  assert.equal(streamed, text);
  const ids = await tokenize(handle, 'Hello');
  assert.equal(await generate('tiny', ids, params), text);
  await unload_model(handle);
  const global = await getEngine();
  await shutdown();
  assert.notEqual(await getEngine(), global);
  const own = await createMLXEngine({
    model: 'tiny', localPath: tinyModel(), engine: { krPath: KR },
  });
  t.after(() => own.dispose());
  assert.ok(own.isInitialized());
  assert.equal(own.getModelHandle()?.state, 'ready');
  assert.equal(await own.generate('Hello', params), text);
  assert.deepEqual(await own.tokenize('Hello'), ids);
  await own.dispose();
  assert.equal(own.isInitialized(), false);
});
